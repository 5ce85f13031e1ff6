"""UPMC-Food-101: the dish from a photo and the text of its page, 101 classes.

    python pipelines/food101.py [flags]       # the same as: cggm train food101 [flags]

It is the file for `ray job submit ... -- python pipelines/food101.py`. The recipe is cggm_ray/recipes/food101.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import food101

RECIPE = food101.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=food101.__doc__))
