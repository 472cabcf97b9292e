"""English training sentences from templates and word lists, and the held-out sentences for testing.

No text is copied from a corpus. The lists were written for their sounds (lip closures, rounding, spread vowels, f/v,
th) and are combined at random, so that any number of sentences can be drawn.
"""

from __future__ import annotations

import random


def _listed(text: str) -> list[str]:
    return text.split("|")


HELD_OUT = (
    "The quick brown fox jumps over the lazy dog.",
    "Welcome to the live demonstration of our virtual presenter.",
    "My mother baked a beautiful apple pie on Sunday.",
    "Why would anyone want to leave this lovely place?",
    "Pack my box with five dozen liquor jugs.",
    "The museum is open from nine until half past four.",
    "Remember to back up important files before you update.",
    "We saw huge waves crashing against the rocks.",
    "A simple number problem became impossible to solve.",
    "He told us a funny story about a goose.",
    "Could I please have some more bread and jam?",
    "Artificial voices have improved a lot, but people still notice.",
)

FIXED = _listed(
    "Please call me back when you have a moment.|What time does the shop open today?|I would love a cup of tea.|"
    "Who put the books on the floor?|Thank you very much for waiting.|Good morning and welcome to the programme.|"
    "Maybe we should meet up tomorrow.|How far away is the airport?|Oh no! I forgot my keys.|Yes.|No, thank you.|"
    "That is a really good question.|Let me show you how it works.|Could you repeat the last part?|Hello!|Of course.|"
    "Nobody believes a word of it.|Put the pepper beside the butter.|She sells sea shells by the shore.|Why not?|"
    "We were away all year.|Five fat frogs fell off the fence.|You choose the music.|It was never my idea.|"
    "Bob made a bubble pop.|Father parked the car far from the barn.|Two blue moons moved too soon.|See you soon.|"
    "Each evening he feeds three green geese.|Mama, papa, and a big baby boy.|Vivian verified five valves.|Perhaps.|"
    "Whether the weather is warm or wet, we walk.|Ah, the calm of a hot afternoon.|Our show goes on.|I see, I see.|"
    "The mayor may remember my name.|Nine nice nights in a row.|Who knew you would choose the blue shoes?|"
    "Thirty-three thieves thought they threw the thing.|Jim chose a cheap jar of orange jam.|"
    "Wow, what a wonderful view!"
)
SUBJECTS = _listed(
    "the old map|my brother|a purple boat|the number five bus|our neighbour|the morning paper|a bowl of soup|"
    "the blue umbrella|every member|a small puppy|the weather|that big window|your first job|the quiet village|"
    "a cheap phone|the yellow moon|his favourite movie|the pilot|a bumpy road|her father|the judge|this machine|"
    "the famous poem|a warm room|the chef|people|the computer|a vanilla milkshake|the theatre|three birds|my uncle|"
    "the mirror|a pair of boots|the garden|our teacher|a huge wave|the market|some honey|the doctor|a white horse|"
    "the engine|two farmers|a fresh loaf|the railway|his voice|a tiny mouse|the bottom shelf|her guitar|a full moon|"
    "the army|a hot pot|the palm trees|our aunt|the tall tower|a cup of coffee|the youth club|these apples"
)
VERBS = _listed(
    "moves|bought|pushed|opened|remembers|found|improves|watched|should keep|might follow|loves|will change|carried|"
    "borrowed|appeared behind|could not stop|jumped over|breathes near|wants to share|planned|never reached|measured|"
    "always avoids|chose|is far from|was above|looks for|threw away|proves|feeds|saw|argued about|knew|calls|washed|"
    "would rather have|leaves|forgot|puts off|belongs to|begins with|may become|drew|joined|solved|voted for"
)
ADVERBIALS = _listed(
    "before lunch|in the middle of May|with both hands|for a while|at the beach|above the bridge|because of you|"
    "without any problem|on Thursday evening|by the river|in Paris|around the house|very slowly|just in time|as usual|"
    "through the fog|under a huge shadow|after the concert|in the car park|for five hours|on the farm|at half past two|"
    "near the pool|with a smile|over the phone|in front of everybody|this afternoon|at the bottom of the sea"
)
OPENERS = _listed("Well|I think|Of course|Suddenly|Perhaps|In my view|Yes|By the way|Oh|Now|Fine|Remember")
JOINERS = _listed("and|but|so|while|because|before|unless")
WORDS = _listed(
    "amber|bamboo|calm|palm|harm|far|spa|bravo|drama|llama|father|market|heart|large|sharp|guard|arch|arm|army|art|"
    "bee|sea|tree|green|queen|speech|deep|sleep|feel|wheel|peace|piece|reason|season|police|machine|believe|receive|"
    "moon|soon|food|blue|true|shoe|two|few|view|youth|music|human|future|group|soup|juice|fruit|cool|school|prove|"
    "book|put|push|foot|good|wolf|woman|should|could|would|sugar|cushion|"
    "bird|word|world|first|third|early|learn|nurse|church|turn|burn|"
    "cat|map|lamp|camera|family|angry|happen|value|balance|travel|magic|planet|cabin|"
    "bed|red|letter|better|pepper|seven|eleven|heaven|weather|memory|energy|"
    "big|bit|ship|chip|milk|film|window|simple|visit|finish|mirror|village|"
    "top|hot|shop|job|problem|promise|possible|bottle|coffee|"
    "bus|cup|love|above|mother|money|number|funny|public|company|"
    "day|name|page|rain|paper|famous|table|radio|station|"
    "home|open|over|photo|motor|coast|road|only|moment|mobile|"
    "five|nine|time|life|write|child|quiet|pilot|violet|"
    "house|town|brown|cloud|mouth|power|flower|thousand|boy|voice|choice|noise|enjoy|employ|"
    "five|fifty|very|over|ever|never|even|favour|fever|half|laugh|wife|leaf|"
    "think|thing|thank|three|through|author|method|nothing|breath|earth|both|south|"
    "this|that|those|other|another|father|brother|rather|weather|leather|"
    "chair|cheese|watch|teacher|nature|picture|jam|judge|bridge|orange|garage|vision|measure|usual|"
    "show|sugar|shape|shoulder|ocean|nation|special|wash|fish|"
    "well|west|water|window|winter|away|always|swim|quick|question|language|"
    "yellow|yesterday|young|year|onion|million|music|beauty|"
    "rabbit|river|rock|rose|sorry|carry|mirror|tomorrow|"
    "light|little|letter|allow|belong|colour|follow|yellow|"
    "king|ring|song|long|sing|finger|hunger|bank|think|"
    "hat|hotel|behind|perhaps|ahead|horse|human|"
    "map|mummy|mammoth|remember|member|bomb|bubble|baby|maybe|probably|pepper|paper|people|pumpkin"
)


def sentences(count: int, seed: int) -> list[str]:
    """`count` different sentences, the fixed ones first, none of HELD_OUT. Deterministic for its seed."""
    chance = random.Random(seed)
    made = dict.fromkeys(FIXED[:count])
    while len(made) < count:
        made[_sentence(chance)] = None
    return [text for text in made if text not in HELD_OUT]


def _sentence(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.35:  # random words cover more pairs of sounds than a template
        words = chance.sample(WORDS, chance.randint(3, 9))
        if len(words) > 5:
            words[len(words) // 2] += ","
        text = " ".join(words)
    else:
        text = _clause(chance)
        if chance.random() < 0.45:
            text += " " + chance.choice(ADVERBIALS)
        if chance.random() < 0.2:
            text = f"{chance.choice(OPENERS)}, {text}"
        if chance.random() < 0.2:
            text += f", {chance.choice(JOINERS)} {_clause(chance)}"
    return text[0].upper() + text[1:] + chance.choice("...?!")


def _clause(chance: random.Random) -> str:
    return f"{chance.choice(SUBJECTS)} {chance.choice(VERBS)} {chance.choice(SUBJECTS)}"
