"""The occupancy grid: cell geometry, updates, and what it rules out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.methods.occupancy import OccupancyGrid, covered_by_finer
from nerfcli.reference.sampling import occupancy_lookup

BOX = Box((0.5, -1.0, 2.0), 0.8, n_cascades=2)


def update(grid: OccupancyGrid, density, n_cells: int, generator, **kwargs: Any) -> int:
    settings: dict[str, Any] = {"decay": 0.9, "threshold": 0.01, "step_size": 0.01} | kwargs
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


@pytest.mark.parametrize("resolution", [1, 2, 3, 5, 6, 7, 9, 10, 126])
def test_a_cell_that_sticks_out_of_the_finer_cube_stays_possible(resolution: int):
    covered = covered_by_finer(2, resolution)
    assert not covered[0].any()
    edges = torch.arange(resolution + 1) * (2.0 / resolution) - 1.0
    within = (edges[:-1] >= -0.5) & (edges[1:] <= 0.5)  # the finer cube is [-0.5, 0.5]^3
    assert torch.equal(covered[1], within[:, None, None] & within[:, None] & within)


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


def test_cell_centers_by_hand():
    grid = OccupancyGrid.create(BOX, 4)
    cells = torch.tensor([0, 1, 4 + 2, 64 + 16 * 3])  # the last one in the outer cube
    want = [[-0.6, -0.6, -0.6], [-0.2, -0.6, -0.6], [0.2, -0.2, -0.6], [-1.2, -1.2, 1.2]]
    torch.testing.assert_close(
        grid.cell_centers(cells) - torch.tensor(BOX.center), torch.tensor(want)
    )


def known(values: list[float], possible: list[bool] | None = None) -> OccupancyGrid:
    """Eight cells with these densities."""
    mask = torch.tensor(possible or [True] * 8).view(1, 2, 2, 2)
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 2, mask)
    grid.densities = torch.tensor(values).view(1, 2, 2, 2)
    return grid


def test_occupied_is_an_optical_depth_of_a_step_or_the_mean():
    grid = known([0.0, 0.9, 1.1, 3.0, 50.0, 50.0, 50.0, 50.0])
    grid.refresh(threshold=0.01, step_size=0.01)  # 1 per unit; the mean is higher
    assert grid.occupied.view(-1).tolist() == [False, False] + [True] * 6
    grid.refresh(threshold=0.02, step_size=0.01)
    assert grid.occupied.view(-1).tolist() == [False] * 3 + [True] * 5
    grid.refresh(threshold=1.0, step_size=0.001)  # above the mean, which is 25.6
    assert grid.occupied.view(-1).tolist() == [False] * 4 + [True] * 4


def test_unknown_and_impossible_cells_do_not_count_in_the_mean():
    unknown = float("inf")
    grid = known([0.0, 0.1, 0.3, 0.4, unknown, 9.0, 9.0, 9.0], [True] * 5 + [False] * 3)
    grid.refresh(threshold=1.0, step_size=0.01)  # the mean of the known and possible is 0.2
    assert grid.occupied.view(-1).tolist() == [False, False, True, True, True] + [False] * 3


def test_the_same_cells_are_occupied_on_any_number_of_threads():
    """Among the densities is every float32 near their mean, so that no rounding of it is lost."""
    n, before, occupied = 64, torch.get_num_threads(), []
    densities = torch.rand(n**3, generator=torch.Generator().manual_seed(5))
    densities[:256] = densities.mean() + (torch.arange(256) - 128) * 2.0**-24
    for n_threads in (1, 2, 3, 4):
        torch.set_num_threads(n_threads)
        grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), n)
        grid.densities = densities.view(1, n, n, n)
        grid.refresh(threshold=1.0, step_size=0.01)
        occupied.append(grid.occupied)
    torch.set_num_threads(before)
    assert all(torch.equal(occupied[0], other) for other in occupied[1:])


def test_the_other_half_of_an_update_is_drawn_from_the_occupied():
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 8)
    generator = torch.Generator().manual_seed(0)

    def slab(positions: torch.Tensor) -> torch.Tensor:
        return 9.0 * (positions[:, 2] < -0.5)  # 128 of 512 cells

    for _ in range(4):
        update(grid, slab, 512, generator)
    assert int(grid.occupied.sum()) == 128
    seen: list[torch.Tensor] = []
    for _ in range(8):
        update(grid, lambda p: seen.append(p) or slab(p), 64, generator)
    in_slab = sum(int((p[:, 2] < -0.5).sum()) for p in seen)
    outside = sum(int((p[:, 2] >= -0.5).sum()) for p in seen)
    # half a round: 256 cells, 64 of them in the slab, and 256 draws from it; some are both
    assert outside == pytest.approx(192, abs=25)
    assert in_slab > 250


def test_a_part_of_a_round_is_spread_over_the_box():
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 16)
    seen: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(0)
    grid.occupied = torch.zeros_like(grid.occupied)
    update(grid, lambda p: seen.append(p) or torch.zeros(len(p)), 512, generator)
    (p,) = seen
    assert len(p) == 256
    # uniform in [-1, 1]: deviation 0.577, of the mean of 256 of them 0.036
    assert p.mean(dim=0).abs().max() < 0.15
    assert (p.std(dim=0) - 0.577).abs().max() < 0.1


def test_a_cell_is_probed_at_random_places():
    possible = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    possible[0, 0, 0, 0] = True
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 4, possible)
    seen: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        update(grid, lambda p: seen.append(p) or torch.zeros(len(p)), 8, generator)
    places = torch.cat(seen)
    assert places.min() >= -1.0 and places.max() < -0.5
    assert (places.amin(dim=0) < -0.95).all() and (places.amax(dim=0) > -0.55).all()
