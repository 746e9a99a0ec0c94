"""Whether a batch is lost, answered twice or answered wrongly when replicas are killed while they work.

Each batch carries its key in its pixels: pairs of images of one grey, which stay as they are however they are mixed. So
an answer says itself which batch it belongs to. Other images are noise, whose mix is compared with that of a mixer in
this process.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.endurance_crowd import Crowd
from benchmarks.endurance_report import Check, PartReport
from benchmarks.endurance_servers import Replica, artefact_of
from benchmarks.machine import Cores
from samix.client.config import ClientConfig
from samix.client.remote import RemoteMixer, connect
from samix.client.retrying import RetryReason, SilentObserver
from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.plan import generator_for
from samix.mixing.presets import tiny_spec

SIDE = 32
KEY_BYTES = 4
"""Of a key: the first is the client's number, the others count its batches."""
_NUM_KEY_IMAGES = 2 * KEY_BYTES
_TOLERANCE = 2.5 / 255
"""Of mixed values in 0..1: masks agree within 1e-3, and answers are rounded to uint8."""
_POLL_S = 0.2
