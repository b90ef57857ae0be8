"""All fields of a configuration, with defaults; the other files of this folder start from here.

The sections of students, readers and export formats are declared where they are read: a section
that is not here, or a field that a section lacks, has the default of the student's spec
(kd_jax/models/students), or of the function (kd_jax/data/readers, kd_jax/serving/exporters).
"""

from ml_collections import ConfigDict, config_dict

from kd_jax.experiment import roles


def get_config() -> ConfigDict:
    c = ConfigDict()
    # 'rank': softmax over the catalogue; 'rate': classes of a user-item pair
    c.task = "rank"
    # every model is trained once per seed; the report shows mean and spread
    c.seeds = (0, 1, 2)
    # the workdir of an older run on older data, to start from (docs/serving.md); '' = none
    c.init_from = ""
    # of a model that starts from it: its steps as a share of those of its section optimizer; 0 =
    # it is used as it is
    c.init_steps = ConfigDict({"teacher": 0.0, "student": 0.125})
    # of its learning rates, which are multiplied by this
    c.init_rate = 0.3
    # 'data', each role, 'labels' before the students that learn from them, then what is made of
    # them; stages run in this order
    before = [*(role.name for role in roles.teachers()), roles.plain_student().name]
    after = [role.name for role in roles.students() if role.distilled]
    c.stages = ("data", *before, "labels", *after, "evaluate", "export", "report")
    c.data = data()
    c.rate = ConfigDict()
    # task 'rate': class = number of boundaries at or below the rating
    c.rate.boundaries = (3.5,)
    c.teacher = teacher()
    c.student = student()
    c.distill = distill()

    # What the search (kd_jax.sweep) chose per role, over the values above: for each a part
    # of the sections teacher, student and distill, for example
    #   {"student": {"mf": {"dropout": 0.3}, "optimizer": {"learning_rate": 5e-3}}}
    c.tuned = ConfigDict({role: {} for role in roles.ROLES})

    c.eval = evaluation()
    c.export = ConfigDict()
    # names of EXPORTERS, what the folder export/ holds; each has a section of its own
    c.export.formats = ("runtime", "weights", "vectors")
    # with format 'runtime': also the first seed of the other models, which the page of the server
    # shows beside the exported one
    c.export.compare = True
    # of the metric that selects, among items that were trained on: the share that may be lost on
    # validation for new items to come into lists; 0 = their biases are as trained
    c.export.new_items = 0.005
    c.export.runtime = ConfigDict()
    # of a number of the item vectors: 32, 16, 8, 4 or 1 (docs/compression.md)
    c.export.runtime.bits = 32
    c.export.weights = ConfigDict()
    c.export.vectors = ConfigDict()
    c.export.numpy = ConfigDict()
    # zip the arrays, which saves a tenth and costs time
    c.export.numpy.compressed = False
    c.export.jax_export = ConfigDict()
    c.export.onnx = ConfigDict()
    # further logs of the training curves: 'tensorboard' (event files in tensorboard/, written
    # without TensorFlow) and 'wandb' (if it is installed)
    c.trackers = ()
    # write an XProf trace of a few steps of every model's training to trace/, and its sums to the
    # log
    c.trace = False
    # compile in a third of the time, into slower programs: for short runs on a CPU
    c.compile_quickly = False
    c.mesh = ConfigDict()
    # devices the batch is split over; -1 = all that are left
    c.mesh.data = -1
    # devices the tables are split over
    c.mesh.model = 1
    return c


def data() -> ConfigDict:
    c = ConfigDict()
    # a name of READERS: 'movietweetings', 'online_retail' (both embedded), 'movielens', 'tfds',
    # 'files', …; each has a section, of which only the chosen one is read
    c.reader = "movietweetings"
    c.movietweetings = ConfigDict()
    c.online_retail = ConfigDict()
    c.movielens = ConfigDict()
    # the folder of a MovieLens release
    c.movielens.path = ""
    c.tfds = ConfigDict()
    c.tfds.name = "movielens/1m-ratings"
    # where data sets are prepared; '' = ~/tensorflow_datasets
    c.tfds.path = ""
    # role -> feature of the data set
    c.tfds.fields = ConfigDict(
        {
            "user": "user_id",
            "item": "movie_id",
            "rating": "user_rating",
            "timestamp": "timestamp",
            "title": "movie_title",
        }
    )
    c.mind = ConfigDict()
    # folders of MIND: of training, and a later one to test on; '' = only the first
    c.mind.path = ""
    c.mind.dev_path = ""
    # whether clicks before the log count
    c.mind.history = True
    c.files = ConfigDict()
    # the interactions
    c.files.path = ""
    # the table of items with their text
    c.files.items_path = ""
    # role -> name of the column; 'event' is the type of an interaction, with weights in
    # data.events; 'item_id' is the item's in the table of items
    c.files.columns = ConfigDict(
        {
            "user": "user",
            "item": "item",
            "rating": "rating",
            "timestamp": "timestamp",
            "split": "split",
            "event": "",
            "item_id": "item",
        }
    )
    # whether the first line of a text file names the columns; otherwise they are 1, 2, 3, …
    c.files.header = True
    c.files.items_header = True
    # between fields; '' = a comma in .csv, a tab in .tsv
    c.files.separator = ""
    # 'auto'; '"': fields may be in double quotes; '': quotes are a part of the text
    c.files.quote = "auto"
    # of dates as text, such as '%d/%m/%Y'; '' = recognised
    c.files.date_format = ""
    # of timestamps that are numbers: 's', 'ms', 'us' or 'ns' since 1970; 'auto': by their size
    c.time_unit = "auto"
    # item columns that make up the text, in order; () = all of them
    c.text_columns = ()
    # item without text: 'error', or 'id' to write its id instead
    c.missing_text = "error"
    # 'leave_one_out', 'temporal', 'ratio', 'strong', 'column'
    c.split = "temporal"
    # train, valid, test of 'temporal', 'ratio' and 'strong'
    c.ratios = (0.8, 0.1, 0.1)
    # users with fewer are left out
    c.min_interactions = 5
    # items with fewer are left out; with both set, the k-core
    c.min_item_interactions = 0
    # rank: keep ratings of at least this
    c.min_rating = config_dict.placeholder(float)
    # which of a user's interactions with the same item counts: 'first', 'last', or the one with the
    # greatest rating, 'max'; 'count': the first, with their number as its weight
    c.repeats = "first"
    # weights of types of events, 'view=0.2, like=1, unlike=0, dislike=-1, login=None': 0 takes back
    # what came before, below 0 is a dislike, None leaves out; '' = interactions have no type
    c.events = ""
    # share of unreadable rows that is tolerated (counted and shown)
    c.max_malformed = 0.0
    # keep only the first so many users (to try things out); 0 = all
    c.max_users = 0
    return c


def teacher() -> ConfigDict:
    c = ConfigDict()
    c.lm = language_model()
    c.model = teacher_model()

    # popularity features of items; training uses past snapshots (needs timestamps)
    c.popularity = ConfigDict()
    c.popularity.enabled = False
    # number of past snapshots
    c.popularity.snapshots = 128
    # days between two snapshots
    c.popularity.snapshot_days = 1.0
    # prediction window in days
    c.popularity.horizon_days = 14.0
    # a snapshot this old is drawn 1/e as often as the newest
    c.popularity.window_days = 60.0

    c.optimizer = ConfigDict()
    c.optimizer.steps = 1000
    c.optimizer.batch_size = 128
    c.optimizer.learning_rate = 1e-3
    # learning rate of the trained language-model weights
    c.optimizer.lm_learning_rate = 2e-5
    # 'constant' or 'cosine', after the warm-up
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_steps = 0
    # batches per update, which uses their mean gradient; steps count batches
    c.optimizer.accumulate = 1
    c.optimizer.weight_decay = 0.0
    # 0 = none
    c.optimizer.clip_norm = 0.0
    # steps between two evaluations; 0 = about 1.5 passes over the users, 50 or more,
    # at most a tenth of steps
    c.optimizer.eval_every = 50
    # evaluations without a new best after which training stops
    c.optimizer.patience = 5

    # the term both teachers learn from; the fields are those of distill.terms
    c.clicks = ConfigDict({"loss": "ce", "items": "warm"})
    return c


def language_model() -> ConfigDict:
    c = ConfigDict()
    # a folder or a hub name
    c.weights = "sentence-transformers/all-MiniLM-L6-v2"
    # 'native': kd_jax's models; 'hf_flax': transformers' own Flax classes
    c.backend = "native"
    # Where pooling, normalize, prompt and max_tokens are not set, they are what the folder of the
    # weights says (modules.json of sentence-transformers), else mean, False, none and 64. The
    # default weights are read with the latter (docs/teachers.md)
    # 'mean', 'cls', 'last', 'max', 'weightedmean', 'mean_sqrt_len_tokens', or several: 'cls+mean'
    c.pooling = config_dict.placeholder(str)
    # scale the vectors to length 1
    c.normalize = config_dict.placeholder(bool)
    # put before every text: a text, or the name of one of the folder's prompts; '' = none
    c.prompt = config_dict.placeholder(str)
    # item text, 'A film called {title}, {genres}'; '' = all columns joined by '. '
    c.template = ""
    # longer texts are cut; form 'cross': pairs of texts, from the old end of the history
    c.max_tokens = config_dict.placeholder(int)
    # of the activations; 'bfloat16' on GPU and TPU. Weights are float32
    c.dtype = "float32"
    # 'head' (language model frozen), 'top_n', 'lora', 'full'
    c.train = "head"
    # layers trained by 'top_n'
    c.top_n = 2
    # 'lora': rank of the adapters, and the linear maps that have one
    c.lora_rank = 8
    c.lora_targets = ("query", "value")
    # keep no activations of its layers: a third more time, far less memory
    c.remat = False
    return c


def teacher_model() -> ConfigDict:
    c = ConfigDict()
    # 'bi': context vector times item vector; 'cross': history and item are read as one text
    c.form = "bi"
    # 'text', 'id', 'text+id'
    c.item_features = "text"
    # 'items': Transformer over item vectors; 'text': the history as text
    c.context = "items"
    # PCA of the language model's vectors; 0 = none
    c.components = 128
    # 0 = plain PCA, 1 = full whitening
    c.whitening = 0.5
    c.dim = 64
    c.blocks = 2
    c.heads = 2
    # of the residual MLP in the item tower
    c.hidden = 256
    # newest interactions that are read
    c.history = 20
    c.dropout = 0.2
    c.init_scale = 0.1
    # whether item biases are learned; they start at the log count either way
    c.train_bias = True
    # The softmax while the language model is trained. 'in_batch': over the batch's items;
    # 'sampled': over these and drawn ones, both with log-Q; 'full': over the catalogue, items
    # outside the batch with their vectors of the last validation, so that it is trained to
    # distinguish old vectors from new ones (docs/results.md). '' is 'in_batch' where there are item
    # texts to encode, else 'full'
    c.softmax = ""
    # 'sampled': items drawn per step, as often as they occur in training
    c.negatives = 0
    # per row: items that the teacher itself scores highest, encoded in the step too
    c.hard_negatives = 0
    return c


def student() -> ConfigDict:
    c = ConfigDict()
    # a name of STUDENTS: 'mf', 'mlp', 'sasrec', …; each has a section, of which only the chosen
    # one is read
    c.name = "mf"
    c.mf = ConfigDict(tables() | recency())
    c.mlp = ConfigDict(tables() | recency())
    # width of the hidden layer
    c.mlp.hidden = 32
    c.sasrec = ConfigDict(tables())
    # newest interactions that are read; where it is distilled at most what its teacher reads
    c.sasrec.history = 20
    c.sasrec.item_dropout = 0.0  # of item vectors, where they are read and where they are scored
    c.sasrec.blocks = 2
    c.sasrec.heads = 2
    # 'plain', or 'ligr': the gated blocks of eSASRec (docs/students.md)
    c.sasrec.block = "plain"

    c.optimizer = ConfigDict()
    # the fields that teacher.optimizer has too mean the same
    c.optimizer.steps = 1000
    c.optimizer.batch_size = 512
    c.optimizer.learning_rate = 1e-2
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_steps = 0
    c.optimizer.accumulate = 1
    c.optimizer.weight_decay = 0.0
    c.optimizer.clip_norm = 0.0
    c.optimizer.eval_every = 20
    c.optimizer.patience = 5
    # update only the table rows that a step touches: lazy Adam (kd_jax/training/lazy_adam.py)
    c.optimizer.sparse = False
    # Adam's moments: 'float32', or 'bfloat16' at half the memory, rounded stochastically
    c.optimizer.moments = "float32"
    # of 'mf': the length at which user and item vectors are kept, so that scores are cosines times
    # its square, plus biases; 0 = free (docs/students.md)
    c.optimizer.vector_norm = 0.0

    # the term the plain student learns from; the fields are those of distill.terms
    c.clicks = ConfigDict({"loss": "ce", "items": "warm"})
    return c


def tables() -> dict[str, object]:
    """Fields of every student."""
    return {
        "dim": 64,
        "dropout": 0.5,
        "init_scale": 0.1,
        # item vectors start: 'random'; 'text', from the language model's, except in the control
        "vectors": "random",
        # item bias starts at: 'count', log(1 + count); 'trend', log of the recency-weighted count;
        # 'teacher', the teacher's
        "bias": "count",
        # bias 'trend': an interaction this old counts 1/e
        "popularity_days": 3.0,
    }


def recency() -> dict[str, object]:
    """Fields of a student that learns all targets of a user at once."""
    return {
        # a target of this age counts 1/e
        "decay": 3.0,
        # 'interactions' (of the user, since then) or 'days' (before the end of training)
        "decay_unit": "interactions",
        # a user weighs (sum of the target weights) ** user_power
        "user_power": 0.5,
    }


def distill() -> ConfigDict:
    c = ConfigDict()
    # What distilled and control learn from: a sum of terms, each a section. Fields of a term:
    #   loss         a name of LOSSES (docs/methods.md); its hyper-parameters are further fields
    #   weight       1.0: a number, or a section {start, end, schedule}, from the first step to the
    #                last; schedule: 'linear' (default), 'cosine' (half a period) or 'constant' (at
    #                start, without an end)
    #   temperature  1.0: a number or such a section, of losses that compare two softmaxes
    #   items        'all', 'warm' (those with a training interaction), or an estimate of either
    #                from a sample, 'sampled' and 'sampled_warm' (all terms or none); 'shown': of a
    #                loss of clicks, the items of an impression, which examples then are
    #   teacher      the source of its labels: '' (the run's own), a name of distill.sources ('a+b':
    #                the mean of the logits of two), or 'student': the run's plain student
    #   head         False; True gives the term a head of its own, which is not exported
    # On the command line --config.distill.terms.soft.weight.end=0 gives a term a schedule,
    # --config.distill.terms.new.loss=kl makes a new one and --config.distill.terms.soft=None
    # takes one out.
    c.terms = ConfigDict(
        {"clicks": {"loss": "ce", "items": "warm"}, "soft": {"loss": "kl", "weight": 3.0}}
    )
    # Teachers from outside (docs/labels.md), each a section {path, confidence}. path: a JSONL file
    # of lists, a workdir, or a model in one; confidence: '' or 'entropy', weights by
    # 1 - normalised entropy; 'target': the share of the probability of what came next, among all
    # sources with 'target'
    c.sources = ConfigDict()
    # a list without scores: exp(-rank / rank_decay)
    c.rank_decay = 10.0
    # share of users, ids and titles in lists that may be unknown (counted and shown)
    c.max_unmatched = 0.1
    # sampled: items drawn per step, shared by the batch; with as many as there are, all are read
    c.negatives = 4096
    # sampled: drawn in proportion to (count + 1) ** power; 0 = uniformly
    c.negatives_power = 0.5
    # sampled: the teacher's items of highest score that 'soft_ce' and 'kl' read exactly
    c.top = 64
    # 'cached' on disk, or 'online' in the step: the same loss
    c.labels = "cached"
    # 'own': the teacher of the student's seed; 'all': the mean of all seeds' logits, of the run's
    # own teacher and of its plain student
    c.teachers = "own"
    # share of their item biases that is taken from the teachers' logits (docs/methods.md)
    c.debias = 0.0
    return c


def evaluation() -> ConfigDict:
    c = ConfigDict()
    c.metrics = (
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
    c.ks = (10, 20)
    # validation metric that selects; '' = 'ndcg@10', or 'auc' of task 'rate' ('log_loss', …)
    c.select = ""
    c.batch_size = 256
    # users of validation in training and, with all who chose a new item, in the selection of what
    # new items get; drawn once; 0 = all. The report is always over all
    c.valid_users = 0
    # names of BASELINES, models of clicks alone that every report compares with, beside popularity:
    # 'item_knn', 'ease', and with the extra baselines 'bpr' and 'ials' (docs/metrics.md)
    c.baselines = ("item_knn",)
    # files of lists of other systems, to compare with on test (docs/metrics.md)
    c.lists = ()
    # resamples of the paired bootstrap over users
    c.bootstrap = 2000
    return c


def parse(arg: str, names: tuple[str, ...] = (), default: str = "") -> tuple[str, bool]:
    """'1m,runlocal' -> ('1m', True).

    Raises ValueError for an argument that is not among ``names``.
    """
    parts = [part for part in (arg or "").split(",") if part]
    runlocal = "runlocal" in parts
    chosen = [part for part in parts if part != "runlocal"] or [default]
    if len(chosen) > 1 or (chosen[0] not in names and chosen[0] != default):
        known = ", ".join((*names, "runlocal"))
        raise ValueError(f"config argument {arg!r} is unknown; known: {known}, joined by a comma")
    return chosen[0], runlocal


def sequences(c: ConfigDict) -> None:
    """A SASRec that starts from the item texts, and one that learns from three of it.

    No other teacher is trained (docs/results.md).
    """
    c.student.name = "sasrec"
    c.student.sasrec.update({"dim": 256, "blocks": 1, "heads": 1, "history": 50, "dropout": 0.5})
    c.student.sasrec.vectors = "text"
    c.student.clicks["items"] = "sampled"
    c.student.optimizer.steps = 6000
    c.student.optimizer.batch_size = 128
    c.student.optimizer.learning_rate = 1e-3
    c.student.optimizer.eval_every = 0
    c.student.optimizer.patience = 4
    c.distill.negatives = 256
    c.distill.negatives_power = 0.0
    c.distill.top = 16
    c.distill.teachers = "all"
    c.distill.terms = {
        "clicks": {"loss": "ce", "items": "sampled"},
        "soft": {"loss": "kl", "items": "sampled", "teacher": "student"},
    }
    c.stages = ("data", "student", "labels", "distilled", "evaluate", "export", "report")
    c.export.runtime.bits = 8
    c.eval.valid_users = 5000


def three_plain_students(workdir: str) -> ConfigDict:
    """The sources a, b and c: the plain students of the seeds 0, 1 and 2 of another run."""
    ends = {"a": "", "b": ".seed1", "c": ".seed2"}
    return ConfigDict({name: {"path": f"{workdir}/student{end}"} for name, end in ends.items()})


def histories(c: ConfigDict) -> None:
    """A text teacher and a SASRec that read the newest 50 items of a history."""
    c.student.name = "sasrec"
    c.student.sasrec.dropout = 0.2
    c.student.sasrec.history = c.teacher.model.history = 50
    for section in (c.teacher.optimizer, c.student.optimizer):
        section.steps = 1500
        section.batch_size = 128
        section.learning_rate = 1e-3
        section.eval_every = 100
        section.patience = 4


def trends(c: ConfigDict) -> None:
    """A matrix factorisation that learns from a text teacher who knows what is popular now.

    For dates and a split by time. The students have the best values of kd_jax.sweep on the
    validation of MovieTweetings, of 24 trials each (docs/results.md).
    """
    c.data.split = "temporal"
    c.teacher.popularity.enabled = True
    c.teacher.model.train_bias = False
    c.teacher.model.hidden = 128
    c.teacher.optimizer.steps = 300
    c.teacher.optimizer.batch_size = 256
    c.teacher.optimizer.learning_rate = 3e-3
    c.teacher.optimizer.schedule = "cosine"
    c.teacher.optimizer.warmup_steps = 15
    c.teacher.optimizer.weight_decay = 0.01
    c.teacher.optimizer.eval_every = 50
    c.teacher.optimizer.patience = 3
    for section in (c.student.mf, c.student.mlp):
        section.decay = 3.0
        section.decay_unit = "days"
    c.student.optimizer.batch_size = 256
    c.student.optimizer.steps = 480
    c.student.optimizer.eval_every = 30
    c.student.optimizer.patience = 4
    c.distill.teachers = "all"
    c.distill.terms = {"soft": {"loss": "kl"}}
    c.tuned.student = {
        "student": {
            "mf": {"dropout": 0.5, "decay": 1.0, "user_power": 0.5},
            "optimizer": {"learning_rate": 0.02, "weight_decay": 0.01},
        }
    }
    c.tuned.control = {
        "student": {
            "mf": {"bias": "teacher", "dropout": 0.3, "user_power": 0.0},
            "optimizer": {"learning_rate": 0.02, "weight_decay": 0.01},
        }
    }
    c.tuned.distilled = {
        "student": {
            "mf": {"bias": "teacher", "dropout": 0.1, "user_power": 0.0},
            "optimizer": {"learning_rate": 0.02, "schedule": "cosine", "weight_decay": 0.01},
        },
        "distill": {"terms": {"soft": {"temperature": 2.0}}},
    }


def shrink(c: ConfigDict) -> ConfigDict:
    """The same run in seconds: one seed, 100 users and the items they know, a few steps."""
    c.seeds = (0,)
    c.compile_quickly = True
    c.data.max_users = 100
    c.data.min_item_interactions = max(1, c.data.min_item_interactions)
    c.teacher.model.blocks = 1
    for section in (c.teacher.optimizer, c.student.optimizer):
        section.steps = 20
        section.eval_every = 10
        section.batch_size = 64
    c.distill.negatives = min(c.distill.negatives, 8)
    c.distill.top = min(c.distill.top, 4)
    c.eval.bootstrap = 200
    return c
