"""Sentences outside the world: open vocabulary, any length, spoken as people speak.

The agent owes all of them the same answer. What they teach is when somebody has finished, and that
is not when a short sentence would have ended: people pause, hesitate, begin again, and go on.
"""

import numpy as np

_PEOPLE = (
    "i we you they he she people nobody somebody everybody my|sister my|brother my|boss the|doctor "
    "our|teacher the|neighbour her|husband his|wife the|children my|friends that|man this|woman "
    "the|driver the|police your|colleague the|manager my|grandmother the|twins our|guests tom anna "
    "peter maria doctor|miller the|girl|next|door the|new|student the|people|upstairs"
).split()
_VERBS = (
    "want wanted need needed like liked found lost bought sold saw forgot remembered painted broke "
    "fixed moved cleaned opened carried ordered missed returned cancelled booked watched heard "
    "brought took left sent kept counted paid|for looked|for asked|for talked|about thought|about "
    "would|like would|rather|have could|not|find did|not|see is|going|to|change was|looking|at "
    "has|never|seen will|pick|up used|to|have should|have|told|me|about"
).split()
_THINGS = (
    "the|red|car a|cup|of|tea two|tickets the|old|house a|new|phone some|bread the|blue|jacket "
    "an|umbrella the|bill my|bag the|keys|to|the|office a|table|for|four the|last|train "
    "those|shoes "
    "a|small|dog the|kitchen|window seven|eggs a|large|coffee|with|milk the|password the|green|box "
    "her|birthday|present the|meeting our|holiday the|whole|story a|letter|from|the|bank "
    "the|answer "
    "twenty|chairs the|heating the|parcel a|different|room the|number|nine|bus some|fresh|fish "
    "the|garden|gate his|first|book an|appointment the|black|cat three|bottles|of|water the|news "
    "a|single|room|without|a|view the|printer|on|the|second|floor the|best|pizza|in|town a|ladder"
).split()
_PLACES = (
    "in|the|city at|the|station near|the|river behind|the|school on|the|third|floor at|home "
    "in|the|kitchen under|the|bridge next|to|the|market in|paris at|the|airport by|the|sea "
    "in|the|other|building across|the|street on|the|way|to|work in|front|of|the|library upstairs "
    "in|the|middle|of|nowhere at|my|aunt's|place outside in|a|small|village|in|the|north"
).split()
_TIMES = (
    "yesterday this|morning last|night on|monday next|week at|seven two|days|ago in|the|evening "
    "before|lunch after|the|party around|noon every|day on|the|first|of|may at|half|past|ten "
    "when|i|was|young for|three|hours since|september all|the|time once|a|month tomorrow|afternoon "
    "between|five|and|six at|the|weekend not|so|long|ago as|soon|as|possible until|friday"
).split()
_QUALITIES = (
    "nice too|expensive very|old not|so|easy a|bit|strange really|good much|better quite|far wrong "
    "cold almost|empty broken|again ready late closed|today full|of|people free|of|charge heavier "
    "the|same|as|before impossible|to|find rather|loud wet green dangerous ten|years|old"
).split()
_JOINTS = (
    "and but because so and|then or which|means|that although while before and|after|that if "
    "that|is|why since unless and|besides even|though"
).split()
_OPENINGS = (
    "well so okay|so i|think you|know actually i|mean listen excuse|me look by|the|way "
    "to|be|honest "
    "let|me|see maybe hello|again the|thing|is hey what|i|wanted|to|say|is sorry yes|but "
    "no|no first|of|all thank|you|but good|morning|i stop|it|i|mean"
).split()
_HESITATIONS = "um uh er hmm well you|know like i|mean".split()
_ASIDES = (
    "not now", "one moment please", "that was not for you", "leave it there", "come here",
    "what do you mean", "i said the other one", "give it to your brother", "never mind", "wait",
    "hold on a second", "i am on the phone", "put it on the table", "did you hear that", "oh no",
    "are you coming", "dinner is ready", "close the door please", "the order is wrong", "really",
    "where did you put it", "no the other way round", "look at that", "just a minute", "maybe",
    "yes of course", "no thanks", "i do not think so", "why not", "who is there", "what else",
)  # fmt: skip
_PATTERNS = (
    "P V T", "P V T L", "P V T W", "P V T L W", "W P V T", "T is Q", "P said that T was Q",
    "do you know if P V T", "can you tell me where T is", "where is T L", "how much is T",
    "what about T", "why is T Q", "who was L W", "when does T arrive L", "is T Q", "are there T L",
    "could you bring T L please", "please put T L", "i would like T and T please", "give me T",
    "what did P say about T", "how do i get from T to T", "let us meet L W",
    "i am not sure if T is Q",
    "it was Q", "that is Q", "call P W", "play T", "turn off T", "remind me to ask P about T W",
    "the problem with T is that it is Q", "there was T L W", "P was L W", "P and P were L",
    "my address is N N N L", "the number is N N N N", "N N N N", "it costs N N or N N", "order N N",
    "set a timer for N minutes", "i live L", "nobody V T", "how many T are L", "T", "L", "W",
)  # fmt: skip
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty hundred"
).split()
_SLOTS = {"P": _PEOPLE, "V": _VERBS, "T": _THINGS, "L": _PLACES, "W": _TIMES, "Q": _QUALITIES}
_SLOTS["N"] = _NUMBERS

_ASIDE_SHARE, _OPENING_SHARE, _MORE_SHARE, _LONGEST_WORDS = 0.12, 0.2, 0.3, 32
_HESITATION_SHARE, _FALSE_START_SHARE = 0.3, 0.15


def draw_sentence(rng: np.random.Generator) -> str:
    """Lower-case words, between one and some thirty."""
    if rng.random() < _ASIDE_SHARE:
        return str(rng.choice(_ASIDES))
    words = _clause(rng)
    while rng.random() < _MORE_SHARE and len(words) < _LONGEST_WORDS:
        words += [*_one_of(_JOINTS, rng), *_clause(rng)]
    if rng.random() < _OPENING_SHARE:
        words = [*_one_of(_OPENINGS, rng), *words]
    if rng.random() < _FALSE_START_SHARE and len(words) > 3:
        words = [*words[: int(rng.integers(1, 4))], *words]
    if rng.random() < _HESITATION_SHARE and len(words) > 2:
        place = int(rng.integers(1, len(words)))
        words = [*words[:place], *_one_of(_HESITATIONS, rng), *words[place:]]
    return " ".join(words[:_LONGEST_WORDS])


def _clause(rng: np.random.Generator) -> list[str]:
    words: list[str] = []
    for part in str(rng.choice(_PATTERNS)).split():
        words += _one_of(_SLOTS[part], rng) if part in _SLOTS else [part]
    return words


def _one_of(choices: list[str], rng: np.random.Generator) -> list[str]:
    return str(rng.choice(choices)).split("|")
