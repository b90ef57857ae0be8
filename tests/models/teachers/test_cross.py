"""The cross-encoder: its inputs, leaks of the future, training, and reranking.

Reranking orders the best items of another model.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import toy
from helpers.hf_folders import save_tokenizer
from helpers.runs import config
from kd_jax import labels as labels_command
from kd_jax import rerank as rerank_command
from kd_jax.core.types import PAD
from kd_jax.data.examples.pairs import PairTokens, with_pairs
from kd_jax.data.examples.rating import rate_examples
from kd_jax.data.splits import TRAIN, VALID
from kd_jax.data.text import item_texts
from kd_jax.distillation import label_cache, labellers
from kd_jax.distillation.teachers import cached_teacher
from kd_jax.evaluation import evaluator
from kd_jax.evaluation.tasks import Rate
from kd_jax.experiment import pipeline, rerank
from kd_jax.models.language import encoding, hf
from kd_jax.models.scorer import split
from kd_jax.models.teachers.cross_encoder import CrossEncoder, CrossSpec, PairRanker, with_vectors

pytestmark = pytest.mark.slow

HISTORY, LONGEST = 5, 32
SPLITS = (0, 1, 2)


@pytest.fixture(scope="module")
def task():
    return Rate(toy.dataset(ratings=True), (3.0,), "auc")


@pytest.fixture(scope="module")
def texts(task):
    return item_texts(task.dataset.items, task.dataset.items.columns)


@pytest.fixture(scope="module")
def tokenizer(world):
    return hf.load_tokenizer(world / "bert")


def encoder_of(world):
    return hf.load_encoder(world / "bert", max_length=LONGEST)[0]


def batch_of(task, split):
    examples = rate_examples(task.dataset, task.classes, split, history=HISTORY)
    return examples, examples.gather(np.arange(examples.size))


def spec_of(task):
    d = task.dataset
    train = d.split == TRAIN
    counts = np.zeros((d.num_items, 2), np.float32)
    np.add.at(counts, (d.item[train], task.classes[train]), 1.0)
    return CrossSpec(16, counts, np.where(train, task.classes, PAD), hidden=8, dropout=0.0)


# Inputs


@pytest.mark.parametrize("split", SPLITS)
def test_a_pair_is_what_the_user_did_before_and_the_item_as_the_tokenizer_joins_them(
    task, texts, tokenizer, split
):
    """The expected pairs are written from the interactions, one by one.

    Nothing of the target or of later interactions is in them.
    """
    d, (_, batch) = task.dataset, batch_of(task, split)
    table = PairTokens(tokenizer, texts, 2, 200).table(batch)
    ids, mask = table.padded()
    assert len(table) > 30
    for n, row in enumerate(batch["interaction"]):
        allowed = max(
            split, 1
        )  # a training pair reads training items, the others read the splits before theirs
        before = [r for r in range(d.indptr[d.user[row]], row) if d.split[r] < allowed][-HISTORY:]
        user = " ".join(
            f"{texts[d.item[r]]}, {('disliked', 'liked')[task.classes[r]]};" for r in before
        )
        expected = tokenizer(user, texts[d.item[row]])
        size = len(expected["input_ids"])
        assert ids[n, :size].tolist() == expected["input_ids"] and not mask[n, size:].any()
        assert (mask[n, :size] - 1).tolist() == expected["token_type_ids"]


def test_a_long_pair_loses_the_old_end_of_the_history_and_is_counted(task, texts, tokenizer):
    _, batch = batch_of(task, VALID)
    whole, short = (PairTokens(tokenizer, texts, 2, longest).table(batch) for longest in (200, 24))
    assert whole.lengths.min() > 24
    for n in range(len(short)):
        full, cut = (
            table.ids[table.indptr[n] : table.indptr[n + 1]].tolist() for table in (whole, short)
        )
        assert len(cut) == 24 and cut[0] == full[0] and cut[1:] == full[len(full) - 23 :]
    lost = int((whole.lengths - 24).sum())
    summary = PairTokens(tokenizer, texts, 2, 24).truncation_summary(batch)
    assert f"{len(short)} of {len(short)} are longer than 24 tokens" in summary
    assert f"lose {lost:,} tokens at the old end" in summary


def test_an_item_that_fills_the_pair_alone_is_cut_at_its_end_and_no_history_is_left(tokenizer):
    pairs = PairTokens(tokenizer, [" ".join("0123456789" * 3), "drama"], 2, 20)
    table = pairs.table({"history": np.array([[PAD, 1], [PAD, PAD]]), "item": np.array([0, 1])})
    ids, _ = table.padded()
    assert tokenizer.decode(ids[0]) == "[CLS] [SEP] " + " ".join("01234567890123456") + " [SEP]"
    assert tokenizer.decode(ids[1][:4]) == "[CLS] [SEP] drama [SEP]", (
        "nothing done before: the item is read"
    )


def test_texts_are_separated_where_the_tokenizer_has_no_token_between_them(tmp_path):
    save_tokenizer(
        tmp_path, ["heat", "toy", ";"], unk_token="[UNK]", pad_token="[PAD]", sep_token="[SEP]"
    )
    pairs = PairTokens(hf.load_tokenizer(tmp_path), ["heat", "toy"], 0, 20)
    table = pairs.table({"history": np.array([[0]]), "item": np.array([1])})
    assert table.ids.tolist() == [3, 5, 2, 4] and table.first.tolist() == [3]
    save_tokenizer(tmp_path, ["heat", "toy", ";"], unk_token="[UNK]", pad_token="[PAD]")
    toy.refused(
        lambda: PairTokens(hf.load_tokenizer(tmp_path), ["heat"], 0, 20),
        "teacher.lm.weights",
        "separate two texts",
    )


def test_token_types_distinguish_the_texts(world):
    encoder = encoder_of(world)
    ids, mask = jnp.array([[2, 5, 3, 7, 3, 0]]), jnp.array([[1, 1, 1, 2, 2, 0]])
    types = jnp.array([[0, 0, 0, 1, 1, 0]])

    def run(encoder):
        hidden = encoder.model(ids, mask > 0, types).last_hidden_state
        return encoder(ids, mask), encoder(ids, jnp.minimum(mask, 1)), hidden[:, :5].mean(1)

    found = nnx.jit(run)(encoder)
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


# Training


def logits_of(model, batch):
    return nnx.jit(lambda model, batch: model.logits(batch))(model, batch)


@pytest.fixture(scope="module")
def both(world, task, texts, tokenizer):
    """The pairs, and the same cross-encoder with frozen vectors and with a language model.

    The vectors are those of all pairs; the language model reads the pairs themselves.
    """
    pairs, encoder, spec = (
        PairTokens(tokenizer, texts, 2, LONGEST),
        encoder_of(world),
        spec_of(task),
    )
    vectors = np.full((len(task.dataset.item), 16), np.nan, np.float32)
    for code in (TRAIN, VALID):
        _, batch = batch_of(task, code)
        vectors[batch["interaction"]] = encoding.encode(encoder, pairs.table(batch))
    frozen = CrossEncoder(spec, vectors, rngs=nnx.Rngs(3))
    return pairs, frozen, CrossEncoder(spec, None, encoder, rngs=nnx.Rngs(3))


def test_a_frozen_and_a_live_language_model_start_with_the_same_logits(task, both):
    pairs, frozen, live = both
    examples, batch = batch_of(task, TRAIN)
    rows = np.arange(7, 40)
    with_ids = with_pairs(examples, pairs).gather(rows)
    part = {key: value[rows] for key, value in batch.items()}
    np.testing.assert_allclose(logits_of(live, with_ids), logits_of(frozen, part), atol=1e-5)
    graphdef, params, constants = split(live)
    _, valid = batch_of(task, VALID)
    assert np.isnan(logits_of(live, valid)).all(), (
        "what was not computed is not mistaken for a vector"
    )
    constants = with_vectors(
        graphdef, params, constants, rows=valid["interaction"], table=pairs.table(valid)
    )
    live = nnx.merge(graphdef, params, constants)
    np.testing.assert_allclose(logits_of(live, valid), logits_of(frozen, valid), atol=1e-5)


def test_gradients_reach_the_language_model_only_where_it_is_trained(world, task, both):
    pairs, frozen, _ = both
    examples, _ = batch_of(task, TRAIN)
    batch = with_pairs(examples, pairs).gather(np.arange(8))
    assert not any(
        "encoder" in jax.tree_util.keystr(path)
        for path, _ in jax.tree.leaves_with_path(split(frozen)[1])
    )
    encoder = encoder_of(world)
    encoder.freeze_below(1)
    graphdef, params, constants = split(
        CrossEncoder(spec_of(task), None, encoder, rngs=nnx.Rngs(3))
    )
    assert [*map(str, params["encoder"]["model"]["layers"])] == ["1"]

    def loss(params):
        return jnp.sum(nnx.merge(graphdef, params, constants).logits(batch)[..., 0] ** 2)

    norms = {key: np.linalg.norm(np.concatenate([x.ravel() for x in jax.tree.leaves(part)]))
             for key, part in jax.jit(jax.grad(loss))(params).items()}  # fmt: skip
    assert norms["encoder"] > 1e-4 and norms["head"] > 1e-4 and norms["smoothing"] > 0


def test_the_initial_item_average_excludes_the_training_rating_itself(task, both):
    frozen, d = both[1], task.dataset
    _, valid = batch_of(task, VALID)
    shares = np.asarray(frozen.shares(valid))
    result = task.evaluate(lambda rows: jnp.asarray(shares[rows]), valid)
    for name, value in task.baseline("valid").metrics.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-5)
    _, train = batch_of(task, TRAIN)
    row = train["interaction"][9]
    others = (d.item == d.item[row]) & (d.split == TRAIN) & (np.arange(len(d.item)) != row)
    prior = np.bincount(task.classes[d.split == TRAIN]) / np.sum(d.split == TRAIN)
    expected = (np.bincount(task.classes[others], minlength=2) + prior) / (others.sum() + 1)
    np.testing.assert_allclose(np.exp(frozen.shares(train)[9]), expected, rtol=1e-5)


def test_labels_on_disk_are_the_logits_of_the_pairs(task, both, tmp_path):
    frozen = both[1]
    examples, batch = batch_of(task, TRAIN)
    label_cache.write(
        tmp_path,
        labellers.of_model(*split(frozen), example_kind="last", rates=True),
        examples,
        batch_size=64,
    )
    found = cached_teacher(tmp_path)
    np.testing.assert_allclose(
        found.scores(found.arrays, batch).scores, logits_of(frozen, batch), atol=1e-5
    )


def test_batches_hold_pairs_of_one_length_and_each_example_is_as_likely(task, texts, tokenizer):
    pairs = PairTokens(tokenizer, texts, 2, 60)
    examples, batch = batch_of(task, TRAIN)
    examples = with_pairs(examples, pairs)
    assert not examples.on_device and not examples.one_shape
    sizes, drawn, rng = pairs.sizes(batch), np.zeros(examples.size), np.random.default_rng(0)
    for _ in range(400):
        rows = examples.draw(rng, 16)
        assert len(set(rows)) == 16 and len({int(size > 32) for size in sizes[rows]}) == 1
        drawn[rows] += 1
        width = examples.gather(rows[:2])["pair_ids"].shape[1]
        assert width == (60 if sizes[rows[0]] > 32 else 32)
    short = sizes <= 32
    assert 0.1 < short.mean() < 0.9 and drawn[short].mean() == pytest.approx(
        drawn[~short].mean(), rel=0.3
    )


def test_drawn_candidates_are_pairs_of_the_same_history_and_never_the_target(
    task, world, texts, tokenizer
):
    pairs = PairTokens(tokenizer, texts, 0, 200)
    examples, batch = batch_of(task, TRAIN)
    share = np.zeros(task.dataset.num_items)
    share[[3, 4]] = 1.0  # the popular ones, and the next where one of them is the target
    found = with_pairs(examples, pairs, negatives=4, share=share).gather(np.arange(20))
    for n in range(20):
        for k in range(5):
            ids = found["pair_ids"][n, k][found["pair_mask"][n, k] == 2]
            title = tokenizer.decode(ids[:-1])
            item = [" ".join(tokenizer.tokenize(text)) for text in texts].index(title)
            assert (
                item == batch["item"][n]
                if k == 0
                else item in (3, 4, 5) and item != batch["item"][n]
            )
            users = [
                found["pair_ids"][n, one][found["pair_mask"][n, one] == 1].tolist()
                for one in (0, k)
            ]
            assert users[0] == users[1]
    pairs = PairTokens(tokenizer, texts, 0, LONGEST)
    found = with_pairs(
        rate_examples(task.dataset, task.classes, TRAIN, history=2), pairs, 4, share
    ).gather(np.arange(8))
    assert logits_of(PairRanker(encoder_of(world), 8, 0.0, rngs=nnx.Rngs(0)), found).shape == (
        8,
        1,
        5,
    )


# Reranking


def test_reranking_orders_the_best_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    old = rng.normal(size=(6, 12)).astype(np.float32) * 100
    first = lambda users: jnp.asarray(old)[users]  # noqa: E731
    items = np.argsort(-old, axis=1)[:, :4].astype(np.int32)
    items[5, 3] = PAD  # a user with fewer candidates
    scores = rng.normal(size=(6, 4)).astype(np.float32)
    new = np.asarray(rerank.reranked(first, items, scores)(np.arange(6)))
    for user in range(6):
        kept = items[user][items[user] != PAD]
        head = kept[np.argsort(-scores[user][: len(kept)], kind="stable")]
        rest = [item for item in np.argsort(-old[user]) if item not in kept]
        assert np.argsort(-new[user]).tolist() == [*head, *rest]
        assert (new[user][rest] == old[user][rest]).all()


def test_reranking_by_the_truth_puts_every_target_that_was_found_first():
    d = toy.dataset()
    popular = evaluator.popularity(d)
    target = d.targets(2)[1]  # one per user
    items, _ = evaluator.top_k(popular, np.arange(d.num_users), 6, d.history(2))
    new = rerank.reranked(popular, items, (items == target[:, None]).astype(np.float32))
    found = evaluator.evaluate_rank(new, d, 2, metrics=("recall", "mrr"), ks=(1, 6))
    before = evaluator.evaluate_rank(popular, d, 2, metrics=("recall",), ks=(6,))
    share = (items == target[:, None]).any(1).mean()
    assert 0 < share < 1
    assert found.metrics["recall@1"] == found.metrics["recall@6"] == pytest.approx(share)
    assert before.metrics["recall@6"] <= share, (
        "a tie counts against a model, and a list is free of ties"
    )


# Whole runs


def cross(world, **fields):
    return config(
        world,
        **{
            "task": "rate",
            "teacher.model.form": "cross",
            "teacher.lm.max_tokens": LONGEST,
            "teacher.lm.train": "top_n",
            "teacher.lm.top_n": 1,
        }
        | {
            "data.split": "ratio",
            "teacher.optimizer.steps": 8,
            "teacher.optimizer.eval_every": 4,
            "student.optimizer.steps": 10,
        }
        | {
            "distill.terms": {
                "clicks": {"loss": "ce"},
                "soft": {"loss": "kl", "temperature": 2.0},
            }
        }
        | fields,
    )


def test_a_student_learns_from_a_cross_encoder(world, tmp_path, capsys):
    stages = ("data", "teacher", "labels", "distilled", "evaluate")
    assert pipeline.main(cross(world, stages=stages), tmp_path / "run") == 0
    assert "tokens at the old end of the history" in capsys.readouterr().out
    rows = {
        row["name"]: row
        for row in json.loads((tmp_path / "run/report/metrics.json").read_text())["models"]
    }
    for name in ("teacher", "distilled"):
        assert np.isfinite([rows[name][split]["log_loss"] for split in ("valid", "test")]).all()
    assert (
        rows["teacher"]["params"] > 5000
        and (tmp_path / "run/labels/teacher.seed0/done.json").exists()
    )


def test_a_cross_encoder_of_another_workdir_teaches(world, tmp_path, capsys):
    assert pipeline.main(cross(world, stages=("data", "teacher")), tmp_path / "judge") == 0
    fields = {
        "task": "rate",
        "data.split": "ratio",
        "student.optimizer.steps": 4,
        "distill.sources": {"judge": {"path": str(tmp_path / "judge/teacher")}},
        "distill.terms": {"soft": {"loss": "kl", "teacher": "judge"}},
    }
    stages = ("data", "labels", "distilled")
    assert pipeline.main(config(world, stages=stages, **fields), tmp_path / "run") == 0
    assert labels_command.main([f"--workdir={tmp_path / 'run'}"]) == 0
    assert "nan" not in capsys.readouterr().out


def test_a_trained_workdir_is_reranked_from_the_command_line(world, tmp_path, capsys):
    run = tmp_path / "run"
    fields = {
        "teacher.lm.max_tokens": LONGEST,
        "eval.metrics": ("ndcg", "recall"),
        "eval.ks": (5, 10),
    }
    assert pipeline.main(config(world, stages=("data", "student"), **fields), run) == 0
    options = [
        f"--set=teacher.{field}"
        for field in (
            "optimizer.steps=4",
            "optimizer.eval_every=2",
            "optimizer.batch_size=8",
            "lm.train=head",
        )
    ]
    assert (
        rerank_command.main([f"--workdir={run}", "--candidates=6", "--negatives=2", *options]) == 0
    )
    assert "reranked by the cross-encoder alone: valid ndcg@10" in capsys.readouterr().out
    rows = list(json.loads((run / "rerank/student.json").read_text())["rows"].values())
    assert rows[0]["test"] != rows[1]["test"]
    assert '"rerank"' not in (run / "metrics.jsonl").read_text(), "the run stays as it was"
    written = json.loads((run / "config.json").read_text()) | {"mesh": {"data": 4, "model": 1}}
    (run / "config.json").write_text(json.dumps(written))  # trained on other devices than are here
    assert (
        rerank_command.main([f"--workdir={run}", "--candidates=5", "--negatives=2", *options]) == 0
    )
    capsys.readouterr()
    for judged in rows[1:]:  # what is below the candidates stays where it was
        assert judged["test"]["recall@10"] == pytest.approx(rows[0]["test"]["recall@10"])
    assert rerank_command.main([f"--workdir={run}", "--model=control"]) == 2
    assert "run the stage 'control' first" in capsys.readouterr().err
    for wrong, message in (
        ("--model=teacher", "known: control, distilled, student"),
        ("--set=teacher.optimizer.step=3", "did you mean 'teacher.optimizer.steps'"),
        ("--set=teacher.steps=3", "teacher.steps is now teacher.optimizer.steps"),
        (
            "--set=teacher.model.form=bi",
            "--set teacher.model.form=bi: give teacher.<section>.<field>",
        ),
        ("--set=teacher.log_every=5", "--set teacher.log_every=5: give teacher.<section>.<field>"),
        ("--candidates=1", "--candidates=1 must be from 2"),
        ("--negatives=0", "--negatives=0 must be at least 1"),
    ):
        assert rerank_command.main([f"--workdir={run}", wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert rerank_command.main([f"--workdir={tmp_path}"]) == 2
    assert "is not the workdir of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"teacher.model.form": "crosss"},
            "teacher.model.form='crosss' is unknown; did you mean 'cross'",
        ),
        ({"teacher.model.context": "text"}, "teacher.model.context='items' (now 'text')"),
        ({"teacher.model.item_features": "text+id"}, "item_features='text' (now 'text+id')"),
        ({"task": "rank"}, "python -m kd_jax.rerank"),
        (
            {"teacher.lm.max_tokens": 8},
            "teacher.lm.max_tokens=8 has no room for a user's text and an item's",
        ),
        ({"teacher.model.dropout": 1.5}, "teacher.model.dropout=1.5"),
        ({"teacher.lm.template": "{title"}, "teacher.lm.template="),
        ({"teacher.lm.template": "{title.year}"}, "teacher.lm.template="),
        ({"teacher.lm.template": "{title[year]}"}, "teacher.lm.template="),
    ],
)
def test_what_a_cross_encoder_cannot_do_is_refused_in_one_line(
    world, tmp_path, capsys, fields, message
):
    assert pipeline.main(cross(world, stages=("data", "teacher"), **fields), tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
