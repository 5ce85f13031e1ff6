"""IEMOCAP: one of four emotions from text, audio and vision.

    python pipelines/iemocap.py [flags]       # the same as: cggm train iemocap [flags]

It is the file for `ray job submit ... -- python pipelines/iemocap.py`. The recipe is cggm_ray/recipes/iemocap.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import iemocap

RECIPE = iemocap.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=iemocap.__doc__))
