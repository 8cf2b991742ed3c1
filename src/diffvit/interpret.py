"""The former name of :mod:`diffvit.attention`, kept for one release."""

import sys

from diffvit import attention

sys.modules[__name__] = attention
