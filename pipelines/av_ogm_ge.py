"""Sets of sound and pictures as OGM-GE trains them: SGD, a step schedule, 100 epochs.

    python pipelines/av_ogm_ge.py [flags]       # the same as: cggm train av_ogm_ge [flags]

It is the file for `ray job submit ... -- python pipelines/av_ogm_ge.py`. The recipe is cggm_ray/recipes/av_ogm_ge.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import av_ogm_ge

RECIPE = av_ogm_ge.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=av_ogm_ge.__doc__))
