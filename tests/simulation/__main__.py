"""Play one seed and print its trace, in `tests/`: python -m simulation SEED [poison]"""

from __future__ import annotations

import logging
import sys

from .story import Story

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    world = Story(int(sys.argv[1]), poison="poison" in sys.argv).run()
    print("\n".join(world.trace))
    print("\n".join(world.wrong) or "nothing went wrong", file=sys.stderr)
    raise SystemExit(1 if world.wrong else 0)
