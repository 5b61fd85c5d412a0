"""Farthest and nearest points, compared with a search by hand."""

from __future__ import annotations

import torch

from flmm_detseg.ops.points import farthest_points, nearest_points


def distance(one, other) -> float:
    return float((one - other).square().sum())


def test_farthest_points_are_those_of_a_search():
    points = torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(0))
    found = farthest_points(points, 12)
    for cloud, chosen in zip(points, found.tolist(), strict=True):
        by_hand = [0]
        while len(by_hand) < 12:
            by_hand.append(max(range(40), key=lambda k: min(distance(cloud[k], cloud[c]) for c in by_hand)))
        assert chosen == by_hand
        assert len(set(chosen)) == 12
    assert torch.equal(farthest_points(points[1:2], 12), found[1:2])
    assert farthest_points(points[:0], 5).shape == (0, 5)


def test_a_set_with_few_points_gives_each_of_them_before_any_twice():
    cloud = torch.tensor([[0.0, 0], [1, 0], [0, 1]]).repeat(4, 1)[None]
    chosen = farthest_points(cloud, 6)
    assert len({tuple(point) for point in cloud[0, chosen[0, :3]].tolist()}) == 3
    assert farthest_points(torch.ones(1, 5, 2), 4).tolist() == [[0, 0, 0, 0]]


def test_nearest_points_are_those_of_a_search_in_a_small_region_too():
    generator = torch.Generator().manual_seed(1)
    # A region of a thousandth of the image, far from the origin.
    points = 0.9 + 1e-3 * torch.rand(2, 30, 2, generator=generator)
    places = points[:, ::7]
    found = nearest_points(places, points, 8)
    for cloud, centres, rows in zip(points, places, found, strict=True):
        for centre, row in zip(centres, rows, strict=True):
            order = sorted(range(30), key=lambda k: distance(cloud[k].double(), centre.double()))
            assert set(row.tolist()) == set(order[:8])
            assert int(row[0]) == order[0]
