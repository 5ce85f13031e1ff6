"""CH-SIMS: sentiment regression from text, audio and vision, in Chinese.

    python pipelines/sims.py [flags]       # the same as: cggm train sims [flags]

It is the file for `ray job submit ... -- python pipelines/sims.py`. The recipe is cggm_ray/recipes/sims.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import sims

RECIPE = sims.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=sims.__doc__))
