"""Sets of sound and pictures: CREMA-D, Kinetics-Sounds, VGGSound, AVE, and UCF-101 as pictures and optical flow.

    python pipelines/av.py [flags]       # the same as: cggm train av [flags]

It is the file for `ray job submit ... -- python pipelines/av.py`. The recipe is cggm_ray/recipes/av.py.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.recipes import av

RECIPE = av.RECIPE

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=av.__doc__))
