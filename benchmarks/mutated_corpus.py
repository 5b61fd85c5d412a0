"""What readers make of damaged and odd files: python benchmarks/mutated_corpus.py [--files 2000] [--seeds 0 1 2]

Files and operators are those of the tests (tests/corpus). The last line is JSON; a traceback, a killed process or a
value that nothing after the reader can use gives exit code 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from corpus.run import main as run  # found through the path above

    return run()


if __name__ == "__main__":
    sys.exit(main())
