"""Which transformers the tests run with: some of them compare with what it does itself, and that changed."""

import transformers
from packaging.version import Version

TRANSFORMERS_5 = Version(transformers.__version__).major >= 5
