"""Features of your own: any modalities, for classification or regression.

    python pipelines/features.py [flags]       # the same as: cggm train features [flags]

It is the file for `ray job submit ... -- python pipelines/features.py`. The recipe is cggm_ray/recipes/features.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import features

RECIPE = features.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=features.__doc__))
