"""A reward that is checked instead of learned: a story has to use a given word. (Rewards: docs/rewards.md.)

    python examples/verifiable_reward.py stories.jsonl words      # stories with a `text` column
    tutelage sft --model MODEL --demonstrations words/demonstrations.jsonl --output words/sft
    tutelage online --model words/sft/model --prompts words/prompts.jsonl --output words/grpo \
        --algorithm grpo --rewards word=examples.verifiable_reward:uses_word
"""

import random
import re
import sys

from tutelage.data.datasets import read_texts, write_jsonl

WORDS = "friend park tree house water garden noise bird door flower room scared proud careful shiny hugged".split()


def uses_word(prompts, completions, word):
    """1 for a completion with its prompt's word in it, the whole word, else 0. `word` is a column of the prompts."""
    return [float(bool(re.search(rf"\b{w}\b", c, re.IGNORECASE))) for c, w in zip(completions, word, strict=True)]


def prepare(stories, folder):
    """Three sentences after six words, asked for with a word that they use; openings with any, a fifth held out."""
    draw, rows, pieces = random.Random(0), ([], [], []), {}
    for text in read_texts(stories).records:
        sentences = re.split(r"(?<=[.!?])\s+", text)
        for words in (" ".join(sentences[i : i + 3]).split(" ") for i in range(0, len(sentences) - 2, 3)):
            pieces[" ".join(words[:6])] = " " + " ".join(words[6:])
    for i, (opening, rest) in enumerate(pieces.items()):
        used = [w for w in WORDS if i % 5 and uses_word(None, [rest], [w])[0]]
        asked = [(w, {"completion": rest}, rows[0]) for w in used] + [(draw.choice(WORDS), {}, rows[1 if i % 5 else 2])]
        for word, more, where in asked:
            where.append({"prompt": f"Word: {word}\n{opening}", "word": word, **more})
    for name, found in zip(("demonstrations", "prompts", "prompts_test"), rows, strict=True):
        write_jsonl(f"{folder}/{name}.jsonl", found)


if __name__ == "__main__":
    prepare(*sys.argv[1:3])
