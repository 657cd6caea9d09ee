"""``python -m cloister.cli``"""

import sys

from . import main

sys.exit(main())
