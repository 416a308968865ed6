"""Every setting of a run: one frozen dataclass tree, a section per box of the pipeline.

A value of 0 or "auto" is filled in by `train.resolve` from the scene and the device before the
run starts; what a run folder holds is always resolved.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SceneConfig:
    downscale: int = 0  # read images at 1/downscale of their size; 0: 1, or what memory asks for
    holdout: int = 8  # every n-th name is a test view where the scene has no split; 0: none
    background: str = "auto"  # auto | white | black: what transparent pixels are shown on
    near: float = 0.0  # nearest sample, scene units; 0: from box and cameras
    far: float = 0.0  # farthest sample; 0: from box and cameras
    box: float = 0.0  # half size of the detail cube, source units; 0: from the scene
    cascades: int = 0  # doublings of the detail cube, itself included; 0: from the scene


@dataclass(frozen=True)
class ModelConfig:
    method: str = "auto"  # auto | hashgrid | classic
    n_levels: int = 16  # hashgrid: levels of the grid
    n_features: int = 2  # hashgrid: features of an entry
    log2_table_size: int = 0  # hashgrid: entries of the largest level; 0: by device
    base_resolution: int = 16  # hashgrid: coarsest level
    max_resolution: int = 0  # hashgrid: finest level; 0: 2048 per detail cube
    width: int = 0  # neurons of a layer; 0: 64 for hashgrid, 256 for classic
    depth: int = 8  # classic: layers of the trunk
    position_frequencies: int = 10  # classic
    direction_frequencies: int = 4  # classic


@dataclass(frozen=True)
class SamplingConfig:
    n_coarse: int = 64  # classic: stratified samples of a ray
    n_fine: int = 128  # classic: importance samples of a ray
    density_noise: float = 0.0  # classic: standard deviation of noise on the raw density
    steps_per_box: int = 0  # hashgrid: marching steps along the detail cube's diagonal; 0: auto
    cone: float = 0.00390625  # hashgrid: growth of the steps with t, where there are cascades
    min_transmittance: float = 1e-4  # hashgrid: a ray ends where less light comes through


@dataclass(frozen=True)
class OccupancyConfig:
    resolution: int = 128  # cells along a cascade
    decay: float = 0.95  # of a cell's density from one update to the next
    threshold: float = 0.01  # optical depth of a step above which a cell is occupied
    every: int = 16  # steps between updates
    cells: int = 0  # cells evaluated in an update; 0: four times the samples of a step


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 0  # length of the run; 0: from minutes
    minutes: float = 0.0  # length of the run in wall-clock time; 0: from steps, or by device
    seed: int = 0  # of all randomness
    n_rays: int = 0  # classic: rays of a step; 0: auto
    n_samples: int = 0  # hashgrid: samples of a step, to which the ray count adapts; 0: auto
    lr: float = 0.0  # peak learning rate; 0: by method, for hashgrid also by n_samples
    lr_final: float = 0.0  # at the end, as a share of the peak; 0: by method
    lr_warmup: int = 0  # steps of linear warm-up
    loss: str = "auto"  # auto | mse | huber
    ema_decay: float = 0.95  # hashgrid: running mean of the weights that is rendered; 0: off
    weight_decay: float = 5e-8  # hashgrid: L2 on the entries of the grid that a step touches
    random_background: bool = True  # hashgrid: RGBA scenes train on random backgrounds
    crop_steps: int = 500  # classic: first steps see only the centre of the images
    crop_fraction: float = 0.5  # classic: side of that centre
    checkpoint_minutes: float = 5.0  # time between checkpoints


@dataclass(frozen=True)
class Config:
    backend: str = "auto"  # auto | a name that `nerf info` lists
    device: str = "auto"  # auto | cpu | cuda
    scene: SceneConfig = field(default_factory=SceneConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    occupancy: OccupancyConfig = field(default_factory=OccupancyConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
