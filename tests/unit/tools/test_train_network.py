"""The parts of the network that are written out by hand, against their plain definitions. Needs torch."""

from dataclasses import replace

import pytest
from tools.train import tokenizer as names
from tools.train.recipe import ModelShape
from tools.train.sources import Document
from tools.train.tokenizer import train_tokenizer, truncated

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")

SHAPE = ModelShape(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
)


@pytest.fixture
def model() -> "object":
    from tools.train.model import Decoder, init_weights

    made = Decoder(SHAPE)
    init_weights(made, seed=1)
    return made


def test_the_loss_in_pieces_is_cross_entropy_with_its_gradients() -> None:
    from tools.train.token_loss import IGNORED, token_loss

    torch.manual_seed(0)
    hidden, head = torch.randn(700, 32), torch.randn(97, 32)
    targets = torch.randint(0, 97, (700,))
    targets[::3] = IGNORED
    found = [tensor.clone().requires_grad_() for tensor in (hidden, head)]
    plain = [tensor.clone().requires_grad_() for tensor in (hidden, head)]
    loss = token_loss(*found, targets)
    expected = torch.nn.functional.cross_entropy(plain[0] @ plain[1].T, targets, ignore_index=IGNORED)
    loss.backward()
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(found, plain, strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)


def test_a_teacher_moves_the_targets_to_its_own_probabilities() -> None:
    from tools.train.token_loss import token_loss

    torch.manual_seed(0)
    hidden, head, other = torch.randn(40, 32), torch.randn(97, 32), torch.randn(40, 32)
    targets = torch.randint(0, 97, (40,))
    mine = hidden.clone().requires_grad_()
    plain = hidden.clone().requires_grad_()
    loss = token_loss(mine, head, targets, (other, head, 0.75))
    goal = 0.75 * torch.softmax(other @ head.T, -1) + 0.25 * torch.nn.functional.one_hot(targets, 97)
    expected = -(goal * torch.log_softmax(plain @ head.T, -1)).sum(-1).mean()
    loss.backward()
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(mine.grad, plain.grad, atol=1e-7)


def test_a_document_in_a_packed_row_does_not_see_the_one_before(model: "object") -> None:
    from tools.train.model import document_mask

    rows = torch.tensor([[0, 5, 6, 7, 0, 8, 9], [0, 30, 31, 32, 0, 8, 9]])
    logits = model(rows, document_mask(rows))
    without_mask = model(rows)

    assert torch.allclose(logits[0, 4:], logits[1, 4:], atol=1e-6)
    assert not torch.allclose(without_mask[0, 4:], without_mask[1, 4:], atol=1e-3)


def test_attention_in_blocks_is_attention_with_its_gradients() -> None:
    from tools.train.attention import attend

    torch.manual_seed(0)
    length = 300  # two whole blocks and a part of one
    tokens = torch.ones(2, length, dtype=torch.long)
    tokens[0, [70, 140, 290]] = 0
    from tools.train.model import document_mask

    mask = document_mask(tokens)
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    ours = [torch.randn(4, length, 16, requires_grad=True) for _ in range(3)]
    plain = [tensor.detach().clone().requires_grad_() for tensor in ours]
    upstream = torch.randn(4, length, 16)
    found = attend(ours[0] / 4, ours[1], ours[2], bias)
    found.backward(upstream)
    q, k, v = (tensor.view(2, 2, length, 16) for tensor in plain)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
    expected.backward(upstream.view(2, 2, length, 16))

    assert torch.allclose(found, expected.flatten(0, 1), atol=1e-5)
    for mine, theirs in zip(ours, plain, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)


def test_a_deeper_network_begins_with_the_same_logits(model: "object") -> None:
    from tools.train.grow import deepened
    from tools.train.model import Decoder

    deeper = Decoder(replace(SHAPE, num_layers=7))
    deeper.load_state_dict(deepened(model.state_dict(), 7))
    tokens = torch.arange(1, 30)[None]

    assert torch.allclose(deeper.logits(tokens), model.logits(tokens), atol=1e-6)


def test_a_network_does_not_shrink(model: "object") -> None:
    from tools.train.grow import deepened

    with pytest.raises(ValueError, match="only grows"):
        deepened(model.state_dict(), 1)


def test_a_new_token_begins_as_the_mean_of_its_pieces() -> None:
    from tools.train.grow import with_vocabulary

    documents = [Document("stdlib/a.py", "code", "def compute(value):\n    return other(values, name)\n" * 9)]
    large = train_tokenizer(documents, 310)
    small = truncated(large, 296)
    rows = torch.randn(296, 8)
    grown = with_vocabulary(rows, small, large)
    token = next(iter(set(large.get_vocab()) - set(small.get_vocab())))
    pieces = [piece.id for piece in small.model.tokenize(token)]

    assert torch.equal(grown[:296], rows)
    assert torch.allclose(grown[large.token_to_id(token)], rows[pieces].mean(0))
    assert [large.id_to_token(number) for number in range(32)] == list(names.SPECIAL_TOKENS)


def test_a_narrow_embedding_keeps_most_of_every_product() -> None:
    from tools.train.grow import narrowed

    torch.manual_seed(0)
    rows = torch.randn(200, 6) @ torch.randn(6, 32)

    assert torch.allclose(narrowed(rows, 6) @ narrowed(rows, 6).T, rows @ rows.T, atol=1e-3)
    assert narrowed(rows, 4).shape == (200, 4)


def test_a_chain_of_features_is_what_step_by_step_drafting_gives() -> None:
    """Unrolled from one place: the same as running the layer on one more token at a time."""
    from tools.train.heads import FeatureHead

    torch.manual_seed(0)
    head = FeatureHead(SHAPE)
    hidden, embedded = torch.randn(1, 12, 32), torch.randn(1, 12, 32)
    whole = head(hidden, embedded, 3)
    place = 6
    mixed = hidden[:, : place + 1]
    for step in range(3):
        plain = head(torch.cat((mixed, mixed[:, -1:]), 1), embedded[:, : mixed.shape[1] + 1], 1)[0]
        assert torch.allclose(plain[0, -1], whole[step][0, place], atol=1e-5)
        mixed = torch.cat((mixed, whole[step][:, place : place + 1]), 1)


def test_a_fitted_feature_head_knows_what_a_linear_target_does_next() -> None:
    """Where the target's last layer sees token and hidden row linearly, the first guess is already right."""
    from tools.train.heads import FeatureHead
    from tools.train.model import Decoder, init_weights

    target = Decoder(replace(SHAPE, num_layers=1))  # what enters its last layer is the embedding itself
    init_weights(target, seed=4)
    torch.manual_seed(0)
    rows = [torch.randint(1, 97, (4, 40)) for _ in range(6)]
    head = FeatureHead(target.shape)
    head.begin_as(target, rows)
    with torch.no_grad():
        hidden = target(rows[0])
        feature = head(hidden, target.embed_tokens(rows[0]), 1)[0]
        missed = (feature - hidden[:, 1:]).square().mean() / hidden[:, 1:].square().mean()

    assert torch.allclose(head.fc.weight[:, :32], torch.eye(32), atol=0.01)
    assert missed < 0.1  # what is left: the first token, which the head's attention does not see


def test_acceptance_of_a_target_by_itself_is_whole() -> None:
    from tools.train.acceptance import chain_acceptance, draft_acceptance
    from tools.train.heads import CHAIN, FeatureHead, MedusaHeads
    from tools.train.model import Decoder, init_weights

    target = Decoder(SHAPE)
    init_weights(target, seed=3)
    tokens = [5, 6, 7]
    for _ in range(20):
        tokens.append(int(target.logits(torch.tensor([tokens]))[0, -1].argmax()))
    rows = [torch.tensor(tokens)]
    found = draft_acceptance(target, target, rows)
    chains = chain_acceptance(target, [(rows[0], 3)], target, MedusaHeads(SHAPE), FeatureHead(SHAPE))

    assert found["greedy"] == 1.0
    assert found["sampled"] == pytest.approx(1.0)
    assert chains["draft"] == pytest.approx(CHAIN)
    assert 0 <= chains["eagle"] <= CHAIN


def test_heads_are_trained_on_for_the_weights_they_were_made_for_and_no_others(tmp_path) -> None:
    from tools.train.heads import FeatureHead, MedusaHeads
    from tools.train.model import Decoder, init_weights
    from tools.train.train_heads import digest_of, go_on, store

    targets = [Decoder(SHAPE), Decoder(SHAPE)]
    for seed, target in enumerate(targets):
        init_weights(target, seed=seed)
    made, other = (
        torch.nn.ModuleDict({"medusa": MedusaHeads(SHAPE), "eagle": FeatureHead(SHAPE)}) for _ in range(2)
    )
    assert not go_on(other, tmp_path, digest_of(targets[0]))
    store(made, tmp_path, digest_of(targets[0]))

    assert not go_on(other, tmp_path, digest_of(targets[1]))
    assert go_on(other, tmp_path, digest_of(targets[0]))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name].bfloat16().float())
