"""A table of your own: numbers, categories, texts, images and arrays in columns, one of which is predicted.

    python pipelines/table.py [flags]       # the same as: cggm train table [flags]

It is the file for `ray job submit ... -- python pipelines/table.py`. The recipe is cggm_ray/recipes/table.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import table

RECIPE = table.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=table.__doc__))
