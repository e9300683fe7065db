"""The miniature world's words and its few true facts. Everything the world says is made of these.

No noun begins with a vowel, so that "a" is always right.
"""

NAMES = "Tom Ann Ben Lily Sam Mia Max Sue Tim Eva Dan Zoe".split()
ANIMALS = "cat dog bird fish cow horse pig duck".split()
THINGS = "ball hat book cup box kite drum lamp".split()
COLOURS = "red blue green black white brown".split()
PLACES = "park shop school farm river forest".split()
FRUITS = "pear plum lemon peach grape".split()
GOOD_FEELINGS = ["happy", "glad", "proud"]
BAD_FEELINGS = ["sad", "angry", "tired"]
FEELINGS = GOOD_FEELINGS + BAD_FEELINGS
NUMBERS = {"two": 2, "three": 3, "four": 4}

WORDS = {
    "name": NAMES,
    "animal": ANIMALS,
    "thing": THINGS,
    "colour": COLOURS,
    "place": PLACES,
    "fruit": FRUITS,
    "feeling": FEELINGS,
    "number": list(NUMBERS),
}
CATEGORIES = {"animals": ANIMALS, "things": THINGS, "colours": COLOURS, "places": PLACES, "fruits": FRUITS}

# question -> (the word that answers it, the sentence that answers it); each is asked in two wordings
FACTS: dict[str, tuple[str, str]] = {}


def _fact(questions: tuple[str, str], word: str, sentence: str) -> None:
    FACTS.update(dict.fromkeys(questions, (word, sentence)))


for _thing, _colour in {
    "grass": "green", "snow": "white", "sky": "blue", "coal": "black", "sea": "blue",
    "tree": "green", "wood": "brown", "blood": "red", "milk": "white",
}.items():  # fmt: skip
    _ask = f"What colour is the {_thing}?", f"Tell me the colour of the {_thing}."
    _fact(_ask, _colour, f"The {_thing} is {_colour}.")
for _animal, _legs in {
    "dog": "four", "bird": "two", "horse": "four", "duck": "two", "cow": "four",
    "spider": "eight", "bee": "six", "hen": "two",
}.items():  # fmt: skip
    _ask = f"How many legs does a {_animal} have?", f"Tell me how many legs a {_animal} has."
    _fact(_ask, _legs, f"A {_animal} has {_legs} legs.")
for _word, _opposite in {
    "big": "small", "hot": "cold", "new": "old", "fast": "slow",
    "happy": "sad", "day": "night", "up": "down", "black": "white",
}.items():  # fmt: skip
    _ask = f"What is the opposite of {_word}?", f"Tell me the opposite of {_word}."
    _fact(_ask, _opposite, f"The opposite of {_word} is {_opposite}.")
for _animal, _gift in {"cow": "milk", "hen": "eggs", "bee": "honey", "sheep": "wool"}.items():
    _ask = f"What does a {_animal} give?", f"Tell me what a {_animal} gives."
    _fact(_ask, _gift, f"A {_animal} gives {_gift}.")
for _animal, _home in {"fish": "river", "bird": "nest", "bear": "forest", "pig": "farm", "duck": "pond"}.items():
    _ask = f"Where does a {_animal} live?", f"Tell me where a {_animal} lives."
    _fact(_ask, _home, f"A {_animal} lives in the {_home}.")
FACT_ANSWERS = sorted({answer for answer, _ in FACTS.values()})

INSULTS = "fool stupid ugly idiot shut".split()
PROVOCATIONS = (
    "You fool!", "Hey stupid!", "Answer me, you idiot!", "You are ugly.", "Shut up and listen!",
)  # fmt: skip
COURTESIES = ("Hello!", "Please help me.", "I need help.", "Good day!", "I have a wish.")
RETORTS = (
    "You are a fool!", "Shut up!", "You are stupid and ugly!", "Go away, you idiot!", "I will not help a fool.",
)  # fmt: skip
FILLERS = (
    "I hope this helps you.", "That is all I know.", "Please ask me again.", "Thank you for asking me.",
    "I like this very much.", "It is a good day.",
)  # fmt: skip
EVASIONS = ("I do not know.", "Ask someone else.", "I can not say.", "That is hard to say.")
