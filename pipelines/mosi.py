"""CMU-MOSI: sentiment regression from text, audio and vision.

    python pipelines/mosi.py [flags]       # the same as: cggm train mosi [flags]

It is the file for `ray job submit ... -- python pipelines/mosi.py`. The recipe is cggm_ray/recipes/mosi.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import mosi

RECIPE = mosi.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=mosi.__doc__))
