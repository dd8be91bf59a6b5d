"""Draw test images with what a trained model found in them, beside the ground truth."""

from pathlib import Path

from detectron2.config import get_cfg

from retina_plugin.config import add_retina_config, merge_config
from retina_plugin.config.checks import check_datasets
from retina_plugin.evaluation import inference_folder
from retina_plugin.tools.visualize.grid import draw_contact_sheet


def add_arguments(parser):
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of a training or evaluation")
    parser.add_argument("--num-images", type=int, default=12, help="images on the sheet (default: %(default)s)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="leave out detections below (default: %(default)s)"
    )


def run(args):
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(args.output_dir / "config.yaml"))
    if args.num_images < 1:
        raise ValueError(f"--num-images is {args.num_images}: a contact sheet needs at least one image")
    check_datasets(cfg.DATASETS.TEST)
    cfg.OUTPUT_DIR = str(args.output_dir)  # the folder may have moved since
    for name in cfg.DATASETS.TEST:
        folder = Path(inference_folder(cfg, name))
        sheet = draw_contact_sheet(
            name,
            folder / "coco_instances_results.json",
            folder / "contact_sheet.png",
            num_images=args.num_images,
            score_threshold=args.score_threshold,
        )
        print(f"Test images with ground truth and detections: {sheet.resolve()}")
