import pytest
import torch

from detectron2_ext.modeling.federated_loss import FederatedClassSampler, sigmoid_classification_loss


def test_loss_of_no_box_is_zero_and_differentiable():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = sigmoid_classification_loss(logits, torch.zeros(0, dtype=torch.int64), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("boxes", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_the_mean_over_the_boxes_in_full_precision_whatever_the_logits_have(boxes, dtype):
    torch.manual_seed(0)
    logits = (4 * torch.randn(boxes, 31)).to(dtype)
    classes, covered = torch.randint(31, (boxes,)), torch.tensor([3, *range(10, 30)])
    target = (classes[:, None] == covered).double()
    chance = logits[:, covered].double().sigmoid()
    exact = -(target * chance.log() + (1 - target) * (1 - chance).log()).sum() / boxes
    loss = sigmoid_classification_loss(logits, classes, covered)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("num_classes", [10, 40])
def test_present_classes_are_always_in_and_background_never(num_classes):
    weights = torch.rand(40) + 0.1
    present = torch.tensor([2, 2, 7, 40, 39])
    chosen = FederatedClassSampler(num_classes)(present, weights)
    assert {2, 7, 39} <= set(chosen.tolist())
    assert len(set(chosen.tolist())) == len(chosen) == num_classes - 1  # one place is the background's
    assert chosen.max() < 40


def test_more_present_classes_than_places_all_count():
    chosen = FederatedClassSampler(3)(torch.arange(8), torch.ones(20))
    assert sorted(chosen.tolist()) == list(range(8))


@pytest.mark.parametrize(
    "weights", [torch.ones(6), torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0, 1.0]), torch.ones(1)]
)
def test_too_few_classes_to_draw_from_give_all_that_there_are(weights):
    chosen = FederatedClassSampler(50)(torch.tensor([len(weights)]), weights)
    assert sorted(chosen.tolist()) == weights.nonzero().squeeze(1).tolist()


def test_frequent_classes_are_drawn_in_proportion_to_their_weight():
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0])
    sampler = FederatedClassSampler(2, torch.Generator().manual_seed(0))
    drawn = torch.zeros(4)
    for _ in range(3000):
        drawn[sampler(torch.tensor([4]), weights)] += 1
    torch.testing.assert_close(drawn / 3000, weights / 15, atol=0.03, rtol=0)


def test_the_generator_alone_decides_the_classes():
    def draw(seed, global_seed):
        torch.manual_seed(global_seed)
        sampler = FederatedClassSampler(20, torch.Generator().manual_seed(seed))
        return sampler(torch.tensor([1]), torch.ones(100)).tolist()

    assert draw(0, 1) == draw(0, 2) != draw(1, 1)
