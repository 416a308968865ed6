"""The occupancy grid: cell geometry, updates, and what it rules out."""

from __future__ import annotations

import torch

from nerfcli.boxes import Box
from nerfcli.occupancy import OccupancyGrid, covered_by_finer, seen_by_cameras
from nerfcli.sampling import occupancy_lookup

BOX = Box((0.5, -1.0, 2.0), 0.8, n_cascades=2)


def update(grid: OccupancyGrid, density, n_cells: int, generator, **kwargs) -> int:
    settings = {"decay": 0.9, "threshold": 0.01, "step_size": 0.01} | kwargs
    return grid.update(density, n_cells=n_cells, generator=generator, **settings)


def test_cell_centers_and_look_up_agree():
    grid = OccupancyGrid.create(BOX, 8)
    cells = grid.possible.view(-1).nonzero().squeeze(1)
    for cell in cells[:: len(cells) // 40].tolist():
        one = torch.zeros_like(grid.possible)
        one.view(-1)[cell] = True
        centre = grid.cell_centers(torch.tensor([cell]))
        assert occupancy_lookup(centre, one, BOX).item()


def test_cells_inside_the_finer_cube_are_never_looked_up():
    covered = covered_by_finer(2, 8)
    grid = OccupancyGrid.create(BOX, 8, possible=torch.ones(2, 8, 8, 8, dtype=torch.bool))
    centres = grid.cell_centers(covered.view(-1).nonzero().squeeze(1))
    assert len(centres) == 64
    assert not occupancy_lookup(centres, covered, BOX).any()


def test_a_full_round_finds_a_ball_exactly():
    def ball(positions: torch.Tensor) -> torch.Tensor:
        inside = (positions - torch.tensor(BOX.center)).norm(dim=1) < 0.5
        return inside * 50.0

    grid = OccupancyGrid.create(BOX, 16)
    generator = torch.Generator().manual_seed(0)
    assert grid.occupied.sum() == grid.possible.sum()  # unknown cells count as occupied
    for _ in range(40):
        update(grid, ball, 2 * int(grid.possible.sum()), generator)
    centres = grid.cell_centers(torch.arange(grid.possible.numel()))
    distance = (centres - torch.tensor(BOX.center)).norm(dim=1).view(grid.possible.shape)
    reach = 0.5 * 3**0.5 * 0.1  # half a cell's diagonal in the fine cube
    fine = torch.zeros_like(grid.possible)
    fine[0] = True
    assert grid.occupied[(distance < 0.5 - reach) & fine].all()
    assert not grid.occupied[(distance > 0.5 + 2 * reach) & grid.possible].any()


def test_densities_fade_where_they_are_no_longer_seen():
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 4)
    generator = torch.Generator().manual_seed(0)
    update(grid, lambda p: torch.full((len(p),), 8.0), 128, generator)
    assert (grid.densities == 8.0).all()
    update(grid, lambda p: torch.zeros(len(p)), 128, generator, decay=0.5)
    assert (grid.densities == 4.0).all()


def test_half_of_an_update_goes_round_all_possible_cells():
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 8)
    generator = torch.Generator().manual_seed(0)
    seen = []

    def record(positions: torch.Tensor) -> torch.Tensor:
        seen.append(len(positions))
        return torch.zeros(len(positions))

    for _ in range(8):
        update(grid, record, 128, generator)
    assert not grid.densities.isinf().any()
    assert max(seen) <= 128
    assert grid.cursor == 0


def test_an_impossible_cell_is_never_evaluated_nor_occupied():
    possible = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    possible[0, 1, 2, 3] = True
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 4, possible)
    positions = []
    generator = torch.Generator().manual_seed(0)
    update(grid, lambda p: positions.append(p) or torch.full((len(p),), 9.0), 64, generator)
    assert grid.occupied.nonzero().tolist() == [[0, 1, 2, 3]]
    (p,) = positions[0]
    assert (p >= torch.tensor([0.5, 0.0, -0.5])).all()
    assert (p <= torch.tensor([1.0, 0.5, 0.0])).all()


def test_seen_by_cameras_keeps_the_shape():
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 4)
    seen = seen_by_cameras(grid, lambda p: p[:, 0] > 0)
    assert seen[..., 2:].all() and not seen[..., :2].any()
