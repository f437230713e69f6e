import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from kornia.augmentation import RandomHorizontalFlip, RandomVerticalFlip
from omegaconf import OmegaConf

from src.core.errors import ConfigError
from src.data.augment import Augment, RandomTranspose, RandomWarp, symmetry

CONF = Path(__file__).resolve().parents[2] / "conf" / "augment"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def build(name, **changes):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    for base in config.pop("defaults", ["_self_"])[:-1]:
        config = OmegaConf.merge(OmegaConf.load(CONF / f"{base}.yaml"), config)
    return instantiate(config, **changes, _convert_="all")


def batch(n=16, size=32, seed=0):
    images = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return images.contiguous(memory_format=torch.channels_last)


def grid():
    axis = torch.linspace(-1, 1, 65)
    return torch.meshgrid(axis, axis, indexing="ij")


def check_uniform(drawn, low, high, tolerance):
    """All values lie in the range, and come near both ends."""
    near = 0.05 * (high - low)
    assert low - tolerance <= drawn.min() < low + near
    assert high + tolerance >= drawn.max() > high - near


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_keeps_shape_type_range_layout_and_its_input(self, name):
        images = batch()
        before = images.clone()
        augment = build(name)
        augmented = augment(images)
        assert torch.equal(images, before)
        assert augmented.shape == images.shape
        assert augmented.dtype == images.dtype
        assert augmented.device == images.device
        assert augmented.is_contiguous(memory_format=torch.channels_last)
        assert augmented.min() >= 0
        assert augmented.max() <= 1
        assert augment(batch(n=1)).shape == (1, 3, 32, 32)

    def test_images_are_drawn_one_by_one_and_the_seed_fixes_the_result(self, name):
        augment = build(name)
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append(augment(batch()))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2]) == (name == "none")
        one = batch(n=1).expand(32, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        distinct = torch.unique(augment(one).flatten(1), dim=0)
        assert (len(distinct) == 1) == (name == "none")

    def test_images_stay_at_their_position_in_the_batch(self, name):
        """Labels are not passed, so the order must not change. Image i is grey, i/32 bright."""
        levels = torch.arange(32.0) / 32
        images = levels[:, None, None, None].expand(-1, 3, 16, 16)
        augmented = build(name)(images)
        assert augmented.std(dim=(1, 2, 3)).max() < 1e-5  # reflection invents no border either
        ratio = augmented.mean(dim=(1, 2, 3))[1:] / levels[1:]
        assert ratio.min() >= 0.7 - 1e-4
        assert ratio.max() <= 1.3 + 1e-4


def test_flips_are_exactly_the_eight_symmetries_equally_often():
    torch.manual_seed(0)
    image = torch.rand(3, 16, 16)
    turns = [torch.rot90(image, k, (1, 2)) for k in range(4)]
    symmetries = torch.stack(turns + [turn.flip(2) for turn in turns])
    augmented = build("flips")(image.expand(4000, -1, -1, -1))
    same = (augmented[:, None] == symmetries[None]).flatten(2).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    counts = same.sum(dim=0)
    assert counts.min() > 400  # 500 expected, standard deviation 21
    assert counts.max() < 600
    images = batch()
    assert torch.equal(RandomTranspose(p=1.0)(images), images.transpose(2, 3))
    assert torch.equal(RandomTranspose(p=0.0)(images), images)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_drawn_symmetries_are_those_of_the_images(order):
    steps = [RandomHorizontalFlip(p=0.3), RandomVerticalFlip(p=0.6), RandomTranspose()]
    augment = Augment(**{f"step{number}": steps[number] for number in order})
    images, results = batch(n=40), []
    for draw in (augment, lambda x: symmetry(x, augment.draw(len(x)))):
        torch.manual_seed(3)
        results += [draw(images), torch.rand(1)]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])  # as many random numbers were used


def test_mamun_rotates_about_the_middle_by_any_angle():
    torch.manual_seed(0)
    augment, (y, x) = build("mamun2025"), grid()
    radius = torch.hypot(x, y)
    # the same at every angle
    rings = (0.5 + 0.5 * torch.cos(4 * radius)).expand(8, 3, -1, -1)
    assert (augment(rings) - rings)[:, :, radius < 0.95].abs().max() < 0.02
    edge = torch.zeros(64, 3, 65, 65)
    edge[..., 32:] = 1
    inside = augment(edge)[:, 0] * (radius < 0.9)
    angle = torch.atan2((inside * y).sum((1, 2)), (inside * x).sum((1, 2)))
    assert (torch.histc(angle, bins=8, min=-torch.pi, max=torch.pi) > 0).all()


def test_sun_fades_colours_by_the_printed_factors():
    """HSV saturation is 1 - min/max, whatever the brightness: its ratio is the drawn factor."""
    torch.manual_seed(0)
    colour = torch.tensor([0.6, 0.4, 0.3])
    augmented = build("sun2023")(colour[None, :, None, None].expand(500, 3, 8, 8))[:, :, 4, 4]
    factor = (1 - augmented.amin(dim=1) / augmented.amax(dim=1)) / (1 - 0.3 / 0.6)
    check_uniform(factor, 0.4, 0.6, 1e-4)
    check_uniform(augmented.amax(dim=1) / 0.6, 0.7, 1.3, 1e-4)


def test_sun_zooms_and_shears_within_the_table_and_makes_things_larger():
    """A = rotation x zoom x shear t: det A = zoom^2, trace(A'A) / det A = 2 + t^2 at any angle."""
    torch.manual_seed(0)
    augment = build("sun2023")
    augment(batch(n=500, size=8))
    linear = augment.transforms[2].transform_matrix[:, :2, :2]
    area = torch.linalg.det(linear)
    trace = (linear.mT @ linear).diagonal(dim1=1, dim2=2).sum(dim=1)
    check_uniform(area.sqrt(), 1.0, 1.2, 1e-3)
    check_uniform((trace / area - 2).clamp(min=0).sqrt(), 0.0, 0.2, 1e-3)
    images = torch.zeros(300, 3, 64, 64)
    images[:, :, 24:40, 24:40] = 0.5
    augmented = augment(images)
    shape = (augmented / augmented.amax(dim=(1, 2, 3), keepdim=True)).mean(dim=1).round()
    area = shape.sum(dim=(1, 2)) / 256
    assert 0.9 < area.min() < 1.1
    assert 1.3 < area.max() < 1.6  # 1.2 squared, and pixels at the rim


def test_geometric_draws_size_aspect_and_angle_within_its_ranges():
    """A = rotation x diag(width, height): the singular values are the two scales."""
    torch.manual_seed(0)
    warp = RandomWarp(degrees=[-30.0, 30.0], scale=[0.75, 1.05], aspect=[0.8, 1.25])
    warp(batch(n=800, size=8))
    linear = warp.transform_matrix[:, :2, :2]
    check_uniform(torch.linalg.det(linear).sqrt(), 0.75, 1.05, 1e-3)
    # columns of A are the images of the two axes of the picture
    width, height = linear.norm(dim=1).unbind(dim=1)
    check_uniform((width / height).log(), math.log(0.8), math.log(1.25), 1e-3)
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg()
    check_uniform(angle, -30, 30, 1e-2)


def test_geometric_shrinks_by_its_scale_and_fills_with_reflection():
    images = torch.zeros(4, 3, 64, 64)
    images[:, :, 16:48, 16:48] = 1
    warp = RandomWarp(degrees=[0.0, 0.0], scale=[0.75, 0.75], aspect=[1.0, 1.0])
    assert warp(images)[:, 0].sum((1, 2)).div(32**2).tolist() == pytest.approx(
        [0.75**2] * 4, rel=0.03
    )
    assert warp(torch.ones(2, 3, 16, 16)).min() > 0.999
    stretched = RandomWarp(degrees=[0.0, 0.0], scale=[1.0, 1.0], aspect=[1.44, 1.44])(images)[0, 0]
    rows, columns = ((stretched > 0.5).any(dim=axis).sum().item() for axis in (1, 0))
    assert (rows, columns) == (pytest.approx(32 / 1.2, abs=1.5), pytest.approx(32 * 1.2, abs=1.5))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: RandomWarp([0.0, 1.0], [1.2, 0.8], [1.0, 1.0]), "scale"),  # upside down
        (lambda: RandomWarp([0.0, 1.0], [1.0, 1.0], [0.0, 1.0]), "aspect"),
        (lambda: Augment(flip=3), "flip"),
        (lambda: Augment(flip=RandomTranspose(p=1.3)), "flip.p"),
        (lambda: Augment(flip=RandomTranspose(p=-0.1)), "flip.p"),
    ],
)
def test_impossible_transforms_are_refused(make, key):
    with pytest.raises(ConfigError) as error:
        make()
    assert error.value.key == key


def numbered(n=8, size=16):
    """Image i is grey, i/n bright, and of class i."""
    levels = torch.arange(n) / n
    return levels[:, None, None, None].expand(-1, 3, size, size), torch.eye(n), levels


@pytest.mark.parametrize(
    "changes", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}]
)
def test_labels_are_mixed_as_the_pixels_are(changes):
    torch.manual_seed(0)
    augment, (images, labels, levels) = build("none", **changes), numbered()
    before = images.clone(), labels.clone()
    kinds = []
    for _ in range(200):
        mixed, shares = augment.mix(images, labels)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(8))
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares @ levels)
        # of its own class and that of the image before it, with one share for the batch
        share = shares[0, 0]
        torch.testing.assert_close(shares, share * labels + (1 - share) * labels.roll(1, 0))
        kinds.append(mixed.std(dim=(2, 3)).max() > 1e-4)
    assert torch.equal(before[0], images)
    assert torch.equal(before[1], labels)
    cut = sum(kinds) / 200
    assert (cut == 0, cut > 0.8) == ("cutmix" not in changes, "mixup" not in changes)


def test_share_of_mixup_has_the_beta_distribution():
    torch.manual_seed(0)
    augment, (images, labels, _) = build("mixup", mixup=0.2), numbered(2, 4)
    shares = torch.stack([augment.mix(images, labels)[1][0, 0] for _ in range(1000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.05)
    # variance of Beta(a, a): 1 / (4 (2a + 1))
    assert shares.var().item() == pytest.approx(1 / 5.6, rel=0.1)


def test_files_do_as_they_say():
    augments = {name: build(name) for name in NAMES}
    assert all(isinstance(augment, Augment) for augment in augments.values())
    assert {name for name in NAMES if augments[name].mixes} == {"mixup", "cutmix"}
    for name, count in {"none": 1, "flips": 8, "mamun2025": None, "sun2023": None}.items():
        assert augments[name].symmetries == count
    images = batch()
    assert augments["none"](images) is images
