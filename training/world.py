"""The small world of the embedded model: what users ask and what the agent answers.

Everything the agent ever says is in this file, word for word. Texts are lower case without
punctuation, since words are what the model hears and speaks. A ``|`` in a question marks a place
where a speaker may pause without the sentence being complete.
"""

from dataclasses import dataclass

import numpy as np

NAME = "nora"
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()
OPEN_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
PLACES = {
    "kitchen": "on the ground floor",
    "library": "on the second floor",
    "garden": "behind the house",
    "exit": "next to the stairs",
    "elevator": "near the front door",
    "bathroom": "at the end of the hall",
}
WELCOME = "hello how can i help you"
STORY = (
    "once there was a small cat who wanted to see the sea she walked for three days "
    "and at last she saw the water then she went home and slept"
)
UNKNOWN = "sorry i do not know that"
STOPPED = "okay"

BACKCHANNELS = ("uh huh", "mm hmm", "yeah", "right", "i see")

OUTSIDE = (
    "what is the weather like",
    "will it rain tomorrow",
    "who is the president",
    "tell me a joke",
    "sing me a song",
    "how old is the moon",
    "where is my car",
    "when does the train leave",
    "do you like music",
    "what is the capital of france",
    "how far is it to london",
    "can you book a table for me",
    "i lost my keys this morning",
    "my brother lives in the city",
    "play something nice",
    "turn on the light",
    "what did you eat for breakfast",
    "how do i cook rice",
    "is there life on mars",
    "who won the game last night",
    "read me the news",
    "what color is the sky",
    "call my mother",
    "how much does a ticket cost",
    "where were you born",
    "do you have a dog",
    "why is the grass green",
    "send a letter to my friend",
    "what is the meaning of life",
    "are you happy with your work",
    "when is your birthday",
    "open the window",
    "i would like a cup of coffee",
    "what is on television",
    "which book should i read",
    "how tall is that tower",
)
MORE_OUTSIDE = (
    "what is the time", "what day is it today", "i want to order a pizza", "i need some help",
    "can you hear me", "this is a test", "one more thing", "i do not understand", "say that again",
    "could you repeat that", "what did you say", "that is not right", "are you a robot",
    "are you a real person", "where do you live", "what are you doing", "how does this work",
    "who made you", "what is your favorite color", "do you like cats", "can you swim",
    "i am looking for my sister", "my name is david", "i would like to talk to a person",
    "can i speak to your manager", "please call me back", "i have a question",
    "what should i do now", "how long does it take", "when is the next bus", "is the shop busy",
    "which way is north", "the door is locked", "there is a bird in the tree",
    "we are going to the beach", "she bought a new bicycle", "he will be late for dinner",
    "did you see the movie", "have you read this book", "will you marry me",
    "could you turn off the radio", "bring me a glass of water", "write an email to my boss",
    "set an alarm for seven", "remind me to feed the dog", "translate this word",
    "how many days are in a year", "how heavy is an elephant", "how fast is a train",
    "why do birds sing", "why is the sea salty", "who invented the telephone",
    "who is your best friend", "what is a computer", "what makes you laugh",
    "what is for lunch", "what happened yesterday", "where did you put the keys",
    "where does the river end", "when did the war end", "i feel a little tired",
    "i think it is going to snow", "it was nice to see them", "let us play a game",
    "let me think about it", "you sound different today", "you are very funny",
    "they live in a small village", "nobody knows the answer", "everything is fine with me",
)  # fmt: skip
OUTSIDE_HELD_OUT = (
    "what is the price of gold",
    "who wrote this letter",
    "is it cold outside",
    "buy some milk for me",
    "how many people live here",
    "do you speak french",
)


@dataclass(frozen=True)
class Exchange:
    """One question with the answer the agent owes it.

    Attributes:
        kind: kind of question, e.g. ``sum``.
        question: the user's words, with ``|`` where a pause is possible.
        answer: the agent's words.
    """

    kind: str
    question: str
    answer: str

    @property
    def words(self) -> str:
        """The user's words without pause marks."""
        return self.question.replace("| ", "")


def _sums() -> list[Exchange]:
    phrasings = ("what is {a} plus | {b}", "how much is {a} plus | {b}", "please add {a} and | {b}")
    return [
        Exchange(
            "sum",
            phrasing.format(a=NUMBERS[a], b=NUMBERS[b]),
            f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]}",
        )
        for a in range(1, 11)
        for b in range(1, 11)
        for phrasing in phrasings
    ]


def _counts() -> list[Exchange]:
    phrasings = ("count to | {n}", "please count to | {n}", "can you count to | {n}")
    return [
        Exchange("count", phrasing.format(n=NUMBERS[n]), " ".join(NUMBERS[1 : n + 1]))
        for n in range(3, 11)
        for phrasing in phrasings
    ]


def _days() -> list[Exchange]:
    answers = {day: f"yes we are open on {day}" for day in OPEN_DAYS}
    answers["sunday"] = "no we are closed on sunday"
    return [
        Exchange("day", phrasing.format(day=day), answer)
        for day, answer in answers.items()
        for phrasing in ("are you open on | {day}", "do you open on | {day}")
    ]


def _places() -> list[Exchange]:
    phrasings = ("where is the | {place}", "where can i find the | {place}")
    return [
        Exchange("place", phrasing.format(place=place), f"the {place} is {where}")
        for place, where in PLACES.items()
        for phrasing in phrasings
    ]


def _fixed() -> list[Exchange]:
    answers: dict[tuple[str, str], tuple[str, ...]] = {
        ("name", f"my name is {NAME}"): (
            "what is your | name",
            "tell me your | name",
            "who are you",
        ),
        ("greeting", WELCOME): ("hello", "hello there", "good morning", f"hi {NAME}"),
        ("mood", "i am fine thank you"): ("how are | you", "how are you today", "are you well"),
        ("thanks", "you are welcome"): ("thank you", "thanks a lot", "thank you very much"),
        ("skills", "i can count add numbers and tell a story"): (
            "what can | you do",
            "how can you | help me",
        ),
        ("opens", "we open at nine in the morning"): (
            "when do you | open",
            "what time do you | open",
        ),
        ("closes", "we close at six in the evening"): (
            "when do you | close",
            "what time do you | close",
        ),
        ("story", STORY): ("tell me a | story", "can you tell me a | story"),
        ("goodbye", "goodbye have a nice day"): ("goodbye", "bye bye", "see you later"),
        ("stop", STOPPED): ("stop", "stop please", "please stop", "be quiet"),
    }
    return [
        Exchange(kind, question, answer)
        for (kind, answer), questions in answers.items()
        for question in questions
    ]


def exchanges() -> list[Exchange]:
    """Every question of the world with its answer, in a fixed order."""
    inside = _sums() + _counts() + _days() + _places() + _fixed()
    return inside + [Exchange("outside", question, UNKNOWN) for question in OUTSIDE]


def held_out_exchanges() -> list[Exchange]:
    """Questions outside the world that training never hears."""
    return [Exchange("outside", question, UNKNOWN) for question in OUTSIDE_HELD_OUT]


def more_outside_exchanges() -> list[Exchange]:
    """More questions outside the world; their words are not among ``user_words``."""
    return [Exchange("outside", question, UNKNOWN) for question in MORE_OUTSIDE]


def answers() -> list[str]:
    """Every sentence the agent can say, each once, in a fixed order."""
    return list(dict.fromkeys([WELCOME] + [exchange.answer for exchange in exchanges()]))


def new_sentence(rng: np.random.Generator) -> str:
    """Words of the agent in an order of no answer: what it may be told to say.

    Half of them begin like one answer and end like another, half are words drawn alone.
    """
    if rng.random() < 0.5:
        return " ".join(rng.choice(agent_words(), rng.integers(2, 9)))
    first, last = (str(text).split() for text in rng.choice(answers(), 2))
    head = first[: rng.integers(1, min(len(first), 5) + 1)]
    tail = last[-rng.integers(1, min(len(last), 5) + 1) :]
    return " ".join(head + tail)


def agent_words() -> list[str]:
    """The agent's vocabulary, sorted."""
    return sorted({word for answer in answers() for word in answer.split()})


def user_words() -> list[str]:
    """The vocabulary of the users that training hears, sorted."""
    texts = [exchange.words for exchange in exchanges()] + list(BACKCHANNELS)
    return sorted({word for text in texts for word in text.split()})
