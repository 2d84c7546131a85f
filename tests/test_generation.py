"""Answers in batches are the answers one by one, on a real tiny model."""

import collections
import math

import pytest

import tiny
from leviathan import generation, models, prompts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("answers")
    rows = tiny.write_rows(directory / "rows.jsonl", 60)
    tiny.write_model(directory / "base", rows)
    return models.Model(models.Source(str(directory / "base")))


def case(name, prompt, **more):
    told = {"name": name, "prompt": prompt, "checks": [{"max_length": 9}], **more}
    return prompts.Case.model_validate(told)


def test_a_batch_answers_as_each_alone(model):
    texts = ["alpha", "Repeat: beta gamma delta epsilon zeta", "mu nu", "xi " * 30]
    cases = [case(str(at), text, max_new_tokens=5 + 4 * at) for at, text in enumerate(texts)]
    alone = [generation.answers(model, [case], 1)[0] for case in cases]
    assert generation.answers(model, cases, 4) == alone
    assert generation.answers(model, cases, 3) == alone
    assert len({answer.text for answer in alone}) == len(alone)


def test_what_is_drawn_does_not_depend_on_the_batch(model):
    """Greedy and sampled cases side by side, of several lengths, some asked twice."""
    cases = [
        case("greedy", "alpha", max_new_tokens=9),
        case("warm", "alpha", temperature=1.0, max_new_tokens=12),
        case("again", "alpha", temperature=1.0, max_new_tokens=12),
        case("hot", "mu nu xi", temperature=2.5, max_new_tokens=7),
        case("long", "xi " * 30, temperature=0.7, max_new_tokens=16),
    ]
    alone = generation.answers(model, cases, 1, seed=3)
    assert generation.answers(model, cases, 2, seed=3) == alone
    assert generation.answers(model, cases, 5, seed=3) == alone
    assert generation.answers(model, cases[::-1], 2, seed=3) == alone[::-1]
    assert generation.answers(model, cases[1:2], 8, seed=3) == alone[1:2]  # as with --tag
    assert alone[1] != alone[2]  # another name: another draw
    other = generation.answers(model, cases, 5, seed=4)
    assert other[0] == alone[0]
    assert all(mine != theirs for mine, theirs in zip(other[1:], alone[1:], strict=True))


def test_tokens_are_drawn_as_often_as_the_softmax_says(model):
    temperature, draws = 1.5, 600
    ids = model.token_ids(generation.rendered(model, case("x", "alpha").conversation))
    shares = (model.logits(ids)[-1].double() / temperature).softmax(-1)
    asked = [case(str(n), "alpha", temperature=temperature, max_new_tokens=1) for n in range(draws)]
    told = collections.Counter(a.text for a in generation.answers(model, asked, 100, seed=1))
    expected: dict[str, float] = collections.defaultdict(float)
    for token, share in enumerate(shares.tolist()):
        text = model.tokenizer.decode([token], skip_special_tokens=True).strip()
        expected[text] += share
    for word in sorted(expected, key=expected.__getitem__)[-10:]:
        share = expected[word]
        spread = 4 * math.sqrt(draws * share * (1 - share)) + 1
        assert abs(told[word] - draws * share) < spread
    assert len(told) > 10
