"""Arguments of ``train_net.py``."""

from detectron2.engine import default_argument_parser


def argument_parser():
    """Detectron2's parser, with what the plugin adds."""
    parser = default_argument_parser()
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start a new run where OUTPUT_DIR holds another one, whose files are moved to OUTPUT_DIR/previous_run_N",
    )
    return parser
