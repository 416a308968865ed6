"""Every setting of a run: one frozen dataclass tree, with a table for each method.

None is filled in from the scene or the device (`engine.resolve`) before a run starts, and 0 means
0. What was taken from the scene stands in the run's scene.json; all else in its config.toml. The
bounds of a value stand at its field; `core.settings` checks them where values come from outside.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from nerfcli.core.devices import KNOWN
from nerfcli.core.errors import NerfError

T = TypeVar("T")

Natural = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
Length = Annotated[int, Meta(ge=1, le=10**9)]
Minutes = Annotated[float, Meta(gt=0, le=1e6)]  # nearly two years
Share = Annotated[float, Meta(ge=0, le=1)]
Growth = Annotated[float, Meta(ge=0, lt=0.5)]  # beyond, empty space is not skipped safely
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# what kernels index with 32 bits, or count in single precision, ends here
SampleCount = Annotated[int, Meta(ge=1, le=2**24)]
StepCount = Annotated[int, Meta(ge=1, le=1_000_000)]
Distance = Annotated[float, Meta(gt=0, le=1e12)]  # single precision counts no farther
DimLight = Annotated[float, Meta(ge=0, le=1e-3)]  # above, proposals learn from dropped samples
RaySamples = Annotated[int, Meta(ge=2, le=4096)]
CellCount = Annotated[int, Meta(ge=1, le=512)]
TableSize = Annotated[int, Meta(ge=1, le=24)]  # 16 levels of 2 features at 24 take 2 GiB
DeviceName = Annotated[str, Meta(pattern=f"^({KNOWN.pattern})$")]


@dataclass(frozen=True)
class SceneConfig:
    """What the user may say about a scene; None leaves it to the scene."""

    downscale: Count | None = None  # read images at 1/downscale of their size; auto: as memory asks
    holdout: Natural = 8  # every n-th name is a test view where the scene has no split; 0: none
    background: Literal["white", "black"] | None = None  # what transparent pixels are shown on
    alpha: Literal["transparent", "ignore"] | None = None  # nothing is there, or ignore the pixel
    near: Positive | None = None  # nearest sample, scene units; auto: from box and cameras
    far: Distance | None = None  # farthest sample; auto: from box and cameras, or by horizon
    box: Positive | None = None  # half size of the detail cube, source units
    cascades: Count | None = None  # cubes: the detail cube, then each twice as wide around it
    images: str | None = None  # folder of the images; auto: where the scene's files say
    skip_bad_frames: bool = False  # leave single frames out that cannot be used


@dataclass(frozen=True)
class TrainConfig:
    """What every method reads."""

    steps: Length | None = None  # length of the run; auto: from minutes
    minutes: Minutes | None = None  # wall-clock length; auto: by steps, or 2, for places 5
    seed: Seed = 0  # of all randomness
    lr: Positive | None = None  # peak rate; auto: by method, for hashgrid also by n_samples
    lr_final: Positive | None = None  # at the end, as a share of the peak; auto: by method
    lr_warmup: Natural = 0  # steps of linear warm-up
    loss: Literal["mse", "huber"] | None = None  # auto: mse for classic, else huber
    exposure: bool | None = None  # learn a gain and an offset of each photo; auto: a hint
    random_background: bool = True  # but for classic: a random colour behind each ray of a step
    checkpoint_minutes: Amount = 1.0  # time between checkpoints; the first comes after 10 s


@dataclass(frozen=True)
class HashGridConfig:
    """Method hashgrid."""

    n_levels: Count = 16  # of the grid
    n_features: Count = 2  # of an entry
    log2_table_size: TableSize | None = None  # entries of the largest level; auto: by device
    base_resolution: Count = 16  # coarsest level
    max_resolution: Count | None = None  # finest level; auto: two cells a pixel, 128 to 2048
    width: Count = 64  # neurons of a layer
    n_samples: SampleCount | None = None  # of a step; the ray count adapts; auto: by device
    steps_per_box: StepCount | None = None  # marching steps along the detail cube's diagonal
    cone: Growth = 0.00390625  # growth of the steps with t, where there are cascades
    min_transmittance: Share = 1e-4  # a ray ends where less light comes through
    occupancy_resolution: CellCount = 128  # cells along a cascade
    occupancy_decay: Share = 0.95  # of a cell's density from one update to the next
    occupancy_threshold: Amount = 0.01  # optical depth of a step above which a cell is occupied
    occupancy_every: Count = 16  # steps between updates
    occupancy_cells: Count | None = None  # evaluated in an update; auto: four times n_samples
    anti_aliasing: bool = False  # leave out levels finer than a pixel's cone; Zip-NeRF, section 2
    opacity_loss: Amount = 0.0  # weight of -o log o of a ray's opacity o: empty or opaque
    distortion_loss: Amount = 0.0  # weight of the spread of a ray's samples; mip-NeRF 360, eq. 15
    ema_decay: Share = 0.95  # running mean of the weights that is rendered; 0: the weights
    weight_decay: Amount = 5e-8  # L2 on the entries of the grid that a step touches


@dataclass(frozen=True)
class UnboundedConfig:
    """Method unbounded."""

    space: Literal["contraction", "perspective"] | None = None  # auto: by how the cameras face
    n_levels: Count = 16  # of the grid
    n_features: Count = 2  # of an entry
    log2_table_size: TableSize | None = None  # entries of the largest level; auto: by device
    base_resolution: Count = 16  # coarsest level
    max_resolution: Count | None = None  # finest level; auto: two cells a pixel, 256 to 8192
    width: Count = 64  # neurons of a layer
    n_rays: SampleCount | None = None  # of a step; auto: by device
    n_samples: RaySamples = 24  # of a ray, while it trains
    n_rendered: RaySamples = 32  # samples of a ray that is rendered
    n_bins: RaySamples = 128  # of a ray, among which they are spread
    horizon: Distance = 100.0  # where rays end, in half sizes of the detail cube
    proposal_resolution: CellCount = 384  # cells along the grid of remembered densities
    padding: Share = 0.2  # of the samples, spread over all bins
    min_transmittance: DimLight = 1e-4  # a ray ends where less light comes through
    anti_aliasing: bool = False  # leave out levels finer than a pixel's cone; Zip-NeRF, section 2
    distortion_loss: Amount = 0.002  # weight of the spread of a ray's samples; mip-NeRF 360, eq. 15
    full_from: Amount | None = None  # half sizes: gradients of nearer samples fade; auto: by views
    ema_decay: Share = 0.95  # running mean of the weights that is rendered; 0: the weights
    weight_decay: Amount = 5e-8  # L2 on the entries of the grid that a step touches


@dataclass(frozen=True)
class ClassicConfig:
    """Method classic."""

    width: Count = 256  # neurons of a layer
    depth: Count = 8  # layers of the trunk
    position_frequencies: Natural = 10
    direction_frequencies: Natural = 4
    spacing: Literal["linear", "disparity"] | None = None  # auto: disparity if facing one way
    n_coarse: Count = 64  # stratified samples of a ray
    n_fine: Natural = 128  # importance samples of a ray
    density_noise: Amount = 0.0  # standard deviation of noise on the raw density
    n_rays: Count | None = None  # of a step; auto: by device
    crop_steps: Natural = 500  # first steps see only the centre of the images
    crop_fraction: Share = 0.5  # side of that centre


@dataclass(frozen=True)
class Config:
    method: str | None = None  # hashgrid, unbounded or classic; auto: by what the scene shows
    backend: str = "auto"  # auto, or a name that `nerf info` lists
    device: DeviceName = "auto"  # auto, cpu, cuda, or cuda:N for one of several
    scene: SceneConfig = field(default_factory=SceneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hashgrid: HashGridConfig = field(default_factory=HashGridConfig)
    unbounded: UnboundedConfig = field(default_factory=UnboundedConfig)
    classic: ClassicConfig = field(default_factory=ClassicConfig)


SHARED_TABLES = ("scene", "train")
# of a method each, by its name
METHOD_TABLES = tuple(
    name
    for name, table in vars(Config()).items()
    if is_dataclass(table) and name not in SHARED_TABLES
)


def stated_method(config: Config) -> str | None:
    """The method that a config names, or whose table it fills; None: the scene decides."""
    default = Config()
    changed = [name for name in METHOD_TABLES if getattr(config, name) != getattr(default, name)]
    return config.method or next(iter(changed), None)


def known(value: T | None) -> T:
    """A setting of a resolved config, in which none that is needed is None.

    Raises:
        NerfError: it is None, as in the file of a run that somebody has shortened.
    """
    if value is None:
        raise NerfError("config.toml lacks a setting that was there. Take an intact copy.")
    return value
