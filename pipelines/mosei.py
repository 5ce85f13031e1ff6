"""CMU-MOSEI: sentiment regression from text, audio and vision.

    python pipelines/mosei.py [flags]       # the same as: cggm train mosei [flags]

It is the file for `ray job submit ... -- python pipelines/mosei.py`. The recipe is cggm_ray/recipes/mosei.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import mosei

RECIPE = mosei.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=mosei.__doc__))
