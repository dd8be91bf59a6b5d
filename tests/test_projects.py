"""The projects run as their READMEs say."""

import subprocess
import sys


def test_pyramid_classifier(request):
    root = request.config.rootpath
    readme = (root / "projects/PyramidClassifier/README.md").read_text()
    command, expected = (line.strip() for line in readme.splitlines() if line.startswith("    "))
    result = subprocess.run(
        [sys.executable, *command.split()[1:]], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected
