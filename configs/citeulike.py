r"""CiteULike with a published split: the papers of a reader, by matrix factorisations.

    FILE=--config.data.files.path=citeulike/interactions.parquet
    python launch.py --config=configs/citeulike.py:wide --workdir=runs/citeulike-wide $FILE
    python launch.py --config=configs/citeulike.py:d20 --workdir=runs/citeulike-d20 $FILE

The argument is 'wide', a student of 200 numbers that learns from clicks; or 'd10' or 'd20', a plain
student and one that also learns from the mean of three wide ones, by KL over all papers that the
reader does not have yet. User and item vectors have one length (student.optimizer.vector_norm).
interactions: user, item, split (train, valid, test). The data have no licence and are not shipped;
the split is in the authors' code of Kang et al., "Topology Distillation", KDD 2021. docs/results.md
describes how they count Recall@50, which selects models here.

Own clicks without texts, the last two rows of each user held out (for a split at random give a
column split):

    ME="--config.data.files.path=clicks.csv --config.data.split=leave_one_out"
    python launch.py --config=configs/citeulike.py:wide --workdir=runs/citeulike-wide $ME
    python launch.py --config=configs/citeulike.py:d20 --workdir=runs/citeulike-d20 $ME

Times are not read here: the rows of a file without them are in the order of time. Where yours has
them add --config.data.files.columns.timestamp=COLUMN to ME, or what is later is learned as if it
were known. The narrow student learns from the seeds 0, 1 and 2 in runs/citeulike-wide; with another
folder add --config.distill.sources.a.path=FOLDER/student, and b and c with student.seed1 and
student.seed2. Fewer steps of the distilled one are those of
--config.tuned.distilled.student.optimizer.steps. The length of the vectors and the rates were
chosen for 25,181 items; choose yours on validation.

Result (test Recall@50, three seeds): wide .3347 ± .0017, 2 min a seed; of 20 numbers, the plain
student .2911 ± .0023 and the distilled one .3181 ± .0043, of 10 .2424 ± .0015 and .2877 ± .0013;
half a minute a seed of either.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink, three_plain_students

DIMS = {"wide": 200, "d10": 10, "d20": 20}


def get_config(arg: str = "") -> ConfigDict:
    name, runlocal = parse(arg, tuple(DIMS), "wide")
    c = common()
    c.data.reader = "files"
    c.data.files.path = "data/citeulike/interactions.parquet"
    c.data.files.columns.timestamp = ""
    c.data.missing_text = "id"
    c.data.split = "column"
    c.data.min_interactions = 1
    c.eval.ks = (10, 20, 50)
    c.eval.select = "recall@50"
    c.student.mf.dim = DIMS[name]
    c.student.mf.dropout = 0.0
    # the order of a user's rows means nothing: all count the same
    c.student.mf.decay = 1e9
    c.student.optimizer.schedule = "cosine"
    c.student.optimizer.eval_every = 25
    c.student.optimizer.patience = 3
    if name == "wide":
        c.student.optimizer.vector_norm = 3.2
        c.student.optimizer.learning_rate = 0.03
        c.student.optimizer.steps = 300
        c.stages = ("data", "student", "evaluate", "export", "report")
    else:
        c.student.optimizer.vector_norm = 2.6 if name == "d20" else 2.2
        c.student.optimizer.learning_rate = 0.05
        c.student.optimizer.steps = 400
        # with a teacher fewer and larger steps do, in the time of the plain student
        rate = 0.1 if name == "d20" else 0.15
        faster = {"vector_norm": 2.5, "steps": 180, "learning_rate": rate}
        c.tuned.distilled = {"student": {"optimizer": faster}}
        c.distill.sources = three_plain_students("runs/citeulike-wide")
        c.distill.terms.soft.teacher = "a+b+c"
        # alpha = 0: KL over the papers that the reader does not have, the ones that are ranked
        c.distill.terms.soft.update({"loss": "dkd", "alpha": 0.0, "temperature": 0.7})
        c.stages = ("data", "labels", "student", "distilled", "evaluate", "export", "report")
    return shrink(c) if runlocal else c
