"""Every field of a configuration, with its default and its meaning. The other files in this folder
start from here.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "rank"  # 'rank': softmax over the catalogue; 'rate': classes of a user-item pair
    c.seeds = (0, 1, 2)  # every model is trained once per seed; the report shows mean and spread
    c.stages = (
        "data",
        "teacher",
        "control_teacher",
        "labels",
        "student",
        "control",
        "distilled",
        "evaluate",
        "export",
        "report",
    )

    c.data = ConfigDict()
    c.data.source = (
        "movietweetings"  # 'movietweetings', 'online_retail', 'movielens', 'tfds', 'files'
    )
    c.data.path = ""  # a directory (movielens) or the interactions file (files)
    c.data.items_path = ""  # files: the table of items with their text
    c.data.columns = ConfigDict(
        {
            "user": "user",
            "item": "item",
            "rating": "rating",
            "timestamp": "timestamp",
            "split": "split",
            "item_id": "item",
        }
    )  # files: what the columns are called
    c.data.text_columns = ()  # item columns that make up the text, in order; () = all of them
    c.data.missing_text = "error"  # item without text: 'error', or 'id' to write its id instead
    c.data.tfds_name = "movielens/1m-ratings"  # tfds: name and fields
    c.data.tfds_fields = ConfigDict(
        {
            "user": "user_id",
            "item": "movie_id",
            "rating": "user_rating",
            "timestamp": "timestamp",
            "title": "movie_title",
        }
    )
    c.data.split = "temporal"  # 'leave_one_out', 'temporal', 'ratio', 'strong', 'column'
    c.data.ratios = (0.8, 0.1, 0.1)  # train, valid, test of 'temporal', 'ratio' and 'strong'
    c.data.min_interactions = 5  # users with fewer are left out
    c.data.min_item_interactions = 0  # items with fewer are left out; with both set, the k-core
    c.data.min_rating = config_dict.placeholder(float)  # rank: keep ratings of at least this
    c.data.max_malformed = 0.0  # share of unreadable rows that is tolerated (counted and shown)
    c.data.max_users = 0  # keep only the first so many users (to try things out); 0 = all

    c.rate = ConfigDict()
    c.rate.boundaries = (3.5,)  # rate: class = number of boundaries at or below the rating

    c.teacher = ConfigDict()
    c.teacher.weights = "sentence-transformers/all-MiniLM-L6-v2"  # a folder or a hub name
    c.teacher.backend = (
        "native"  # 'native': kd_jax's BERT; 'hf_flax': transformers' own Flax classes
    )
    c.teacher.pooling = "mean"  # 'mean', 'cls', 'last', 'max'
    c.teacher.normalize = False  # scale the language model's vectors to length 1
    # 'bi': context vector times item vector; 'cross': history and item are read as one text
    c.teacher.form = "bi"
    c.teacher.template = (
        ""  # item text, 'A film called {title}, {genres}'; '' = all columns joined by '. '
    )
    c.teacher.max_tokens = (
        64  # longer texts are cut; 'cross': pairs of texts, from the old end of the history
    )
    # of the language model's activations; 'bfloat16' on GPU and TPU. Weights are float32
    c.teacher.dtype = "float32"
    c.teacher.train = "head"  # 'head' (language model frozen), 'top_n', 'lora', 'full'
    c.teacher.top_n = 2  # layers trained by 'top_n'
    c.teacher.lora_rank = 8  # 'lora': rank of the adapters, and the linear maps that have one
    c.teacher.lora_targets = ("query", "value")
    c.teacher.lm_learning_rate = 2e-5  # of what is trained of the language model
    # while it is trained, over 'in_batch': the batch's items, 'sampled': these and drawn ones,
    c.teacher.softmax = ""
    # both with log-Q, or 'full': the catalogue, items outside the batch with their vectors of the
    # last validation; it learns to tell these apart (docs/results.md). '' is 'in_batch' where there
    # are item texts to encode, else 'full'
    c.teacher.negatives = 0  # 'sampled': items drawn per step, as often as they occur in training
    c.teacher.hard_negatives = (
        0  # per row: items that the teacher itself scores highest, encoded in the step too
    )
    c.teacher.remat = False  # keep no activations of its layers: a third more time, far less memory
    c.teacher.item_features = "text"  # 'text', 'id', 'text+id'
    c.teacher.context = (
        "items"  # 'items': Transformer over item vectors; 'text': the history as text
    )
    c.teacher.components = 128  # PCA of the language model's vectors; 0 = none
    c.teacher.whitening = 0.5  # 0 = plain PCA, 1 = full whitening
    c.teacher.dim = 64
    c.teacher.blocks = 2
    c.teacher.heads = 2
    c.teacher.hidden = 256  # of the residual MLP in the item tower
    c.teacher.history = 20  # newest interactions that are read
    c.teacher.dropout = 0.2
    c.teacher.init_scale = 0.1
    c.teacher.train_bias = (
        True  # whether item biases are learned; they start at the log count either way
    )
    # items carry how popular they were of late, and training replays the past (needs timestamps)
    c.teacher.trend = False
    c.teacher.snapshots = 128  # trend: moments of the past that are replayed
    c.teacher.snapshot_days = 1.0  # trend: days between two moments
    c.teacher.horizon_days = 14.0  # trend: what a user does within so many days is to be predicted
    c.teacher.window_days = 60.0  # trend: a moment this old is replayed 1/e as often as the newest
    c.teacher.steps = 1000
    c.teacher.batch_size = 128
    c.teacher.learning_rate = 1e-3
    c.teacher.schedule = "constant"
    c.teacher.warmup_steps = 0
    c.teacher.accumulate = 1  # batches whose mean gradient makes one update; steps count batches
    c.teacher.weight_decay = 0.0
    c.teacher.clip_norm = 0.0
    c.teacher.eval_every = 50
    c.teacher.patience = 5

    c.student = ConfigDict()
    c.student.name = "mf"  # 'mf', 'mlp', 'sasrec'
    c.student.dim = 64
    c.student.dropout = 0.5
    c.student.init_scale = 0.1
    c.student.decay = 3.0  # mf, mlp: a target of this age counts 1/e
    # 'interactions' (of the user, since then) or 'days' (before the end of training)
    c.student.decay_unit = "interactions"
    c.student.user_power = 0.5  # mf, mlp: a user weighs (sum of the target weights) ** user_power
    # item bias starts at: 'count', log(1 + count); 'trend', log of late; 'teacher', the teacher's
    c.student.bias = "count"
    c.student.trend_days = 3.0  # bias='trend': an interaction this old counts 1/e
    c.student.hidden = 32  # mlp
    c.student.history = 20  # sasrec; at most teacher.history where it is distilled
    c.student.blocks = 2  # sasrec
    c.student.heads = 2  # sasrec

    c.distill = ConfigDict()
    c.distill.clicks = (
        "ce",
        1.0,
        1.0,
        "constant",
        "warm",
    )  # what teachers and the plain student learn from
    c.distill.terms = (("ce", 1.0, 1.0, "constant", "warm"), ("kl", 3.0, 1.0, "constant", "all"))
    # (name, weight, temperature, schedule, items, teacher); names: 'ce', 'soft_ce', 'kl'; items:
    # 'all', 'warm', or an estimate of either from a sample, 'sampled', 'sampled_warm' (all terms or
    # none; a teacher's own training reads all items); teacher: the one a soft term reads, 'teacher'
    # (the run's own) or a name of distill.sources
    # teachers from outside (docs/labels.md): (name, path) or (name, path, confidence); path: a
    c.distill.sources = ()
    # JSONL file of lists, a workdir, or a model in one; confidence: '' or 'entropy', the surer the
    # teacher the more
    c.distill.rank_decay = 10.0  # a list without scores: exp(-rank / rank_decay)
    c.distill.max_unmatched = (
        0.1  # share of users, ids and titles in lists that may be unknown (counted and shown)
    )
    c.distill.negatives = 4096  # sampled: items drawn per step, shared by the batch
    c.distill.negatives_power = (
        0.5  # sampled: drawn in proportion to (count + 1) ** power; 0 = uniformly
    )
    c.distill.top = (
        64  # sampled: the teacher's items of highest score that 'soft_ce' and 'kl' read exactly
    )
    c.distill.labels = "cached"  # 'cached' on disk, or 'online' in the step: the same loss
    c.distill.teachers = (
        "own"  # 'own': the teacher of the student's seed; 'all': the mean of all seeds' logits
    )

    c.train = ConfigDict()  # of student, control and distilled
    c.train.steps = 1000
    c.train.batch_size = 512
    c.train.learning_rate = 1e-2
    c.train.schedule = "constant"
    c.train.warmup_steps = 0
    c.train.accumulate = 1
    c.train.weight_decay = 0.0
    c.train.clip_norm = 0.0
    c.train.eval_every = 20
    c.train.patience = 5
    c.train.sparse = (
        False  # update only the table rows that a step touches: lazy Adam (kd_jax/sparse.py)
    )
    # Adam's moments: 'float32', or 'bfloat16' at half the memory, rounded stochastically
    c.train.moments = "float32"

    c.tuned = (
        ConfigDict()
    )  # what the search (benchmarks/tune.py) chose per model, over the values above
    # pairs (field, value), for example (("student.dropout", 0.3), ("train.learning_rate", 5e-3))
    for model in ("teacher", "control_teacher", "student", "control", "distilled"):
        c.tuned[model] = ()

    c.eval = ConfigDict()
    c.eval.metrics = (
        "ndcg",
        "recall",
        "precision",
        "f1",
        "mrr",
        "map",
        "hit_rate",
        "auc",
        "coverage",
        "novelty",
    )
    c.eval.ks = (10, 20)
    # validation metric that selects; '' = 'ndcg@10', or 'auc' of task 'rate' ('log_loss', …)
    c.eval.select = ""
    c.eval.batch_size = 256
    c.eval.valid_users = (
        0  # users that validation in training judges, drawn once; 0 = all. The report judges all
    )
    c.eval.bootstrap = 2000  # resamples of the paired bootstrap over users

    # write an XProf trace of a few steps of every model's training to trace/, and its sums to the
    # log
    c.trace = False
    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices the batch is split over; -1 = all that are left
    c.mesh.model = 1  # devices the tables are split over
    return c


def parse(arg: str, names: tuple[str, ...] = (), default: str = "") -> tuple[str, bool]:
    """'1m,runlocal' -> ('1m', True). Raises ValueError for an argument that is not among
    ``names``.
    """
    parts = [part for part in (arg or "").split(",") if part]
    runlocal = "runlocal" in parts
    chosen = [part for part in parts if part != "runlocal"] or [default]
    if len(chosen) > 1 or (chosen[0] not in names and chosen[0] != default):
        known = ", ".join((*names, "runlocal"))
        raise ValueError(f"config argument {arg!r} is unknown; known: {known}, joined by a comma")
    return chosen[0], runlocal


def shrink(c: ConfigDict) -> ConfigDict:
    """The same run in seconds: one seed, 300 users, a few steps."""
    c.seeds = (0,)
    c.data.max_users = 300
    for section in (c.teacher, c.train):
        section.steps, section.eval_every, section.batch_size = 20, 10, 64
    c.eval.bootstrap = 200
    return c
