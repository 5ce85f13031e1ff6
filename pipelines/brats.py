"""BraTS 2021: tumour segmentation from four MRI sequences (flair, t1ce, t1, t2).

    python pipelines/brats.py [flags]       # the same as: cggm train brats [flags]

It is the file for `ray job submit ... -- python pipelines/brats.py`. The recipe is cggm_ray/recipes/brats.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import brats

RECIPE = brats.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=brats.__doc__))
