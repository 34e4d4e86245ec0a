"""Ends a ServerApp at one of its calls that change the disk; a test puts this on its PYTHONPATH.

Python imports a module of this name when it starts, in every process; all but ServerApps go on as
they are. ``WARDROUND_DIE_AT`` names a folder of :mod:`tests.fault.deployed_points`.
"""

import os
import sys

if "WARDROUND_DIE_AT" in os.environ and any("flwr-serverapp" in word for word in sys.orig_argv):
    from tests.fault.deployed_points import install

    install()
