#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3: AutoTokenizer gives other ids than the folder's tokenizer.json.
#
# The folder names the class GPT2Tokenizer; its tokenizer.json is a byte-level BPE that first splits
# numbers into digits, as several published models have it. Expected: the ids of tokenizer.json, as
# with transformers 4.57.6, since a complete tokenizer.json holds all rules. Seen: no error and no
# warning; version 5 takes only vocabulary and merges from the file and makes the other rules anew as
# the class has them, so "123" is one token in place of three. PreTrainedTokenizerFast reads the same
# file as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/program.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
merges = [("1", "2"), ("12", "3")]
words = ["<unk>", "<s>", "</s>", *alphabet, "12", "123"]
rules = tokenizers.Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
rules.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
)
rules.post_processor = processors.ByteLevel()
rules.add_special_tokens(words[:3])
folder = Path(sys.argv[1])
rules.save(str(folder / "tokenizer.json"))
written = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def ids(name):
    (folder / "tokenizer_config.json").write_text(json.dumps(written | {"tokenizer_class": name}))
    return AutoTokenizer.from_pretrained(folder)("123")["input_ids"]


expected = rules.encode("123").ids
found = ids("GPT2Tokenizer")
general = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))("123").input_ids
print(transformers.__version__, "tokenizer.json:", expected, "GPT2Tokenizer:", found)
assert general == expected, "changed: the general class reads the file differently"
same = found == expected
assert same == transformers.__version__.startswith("4."), "changed: see the first lines"
PYTHON
for version in 4.57.6:0.22.2 5.24.0:0.23.3; do
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip install --quiet "transformers==${version%:*}" "tokenizers==${version#*:}"
  mkdir "$folder/model"
  "$folder/venv/bin/python" "$folder/program.py" "$folder/model" 2> /dev/null
  rm -r "$folder/venv" "$folder/model"
done
