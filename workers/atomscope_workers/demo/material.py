"""The words that the demo's documents are made of. All of it was written for this project."""

from __future__ import annotations

CATEGORIES: dict[str, tuple[str, ...]] = {
    "mammal": (
        "whale",
        "bat",
        "horse",
        "rabbit",
        "otter",
        "camel",
        "squirrel",
        "hedgehog",
        "giraffe",
        "seal",
    ),
    "bird": ("penguin", "owl", "ostrich", "sparrow", "heron", "swan", "falcon", "puffin", "magpie", "robin"),
    "fish": ("salmon", "trout", "herring", "cod", "pike", "carp", "tuna", "mackerel", "halibut", "sardine"),
    "insect": (
        "beetle",
        "wasp",
        "moth",
        "cricket",
        "mosquito",
        "termite",
        "ladybird",
        "locust",
        "hornet",
        "flea",
    ),
    "fruit": ("pear", "plum", "mango", "cherry", "apricot", "fig", "lemon", "banana", "melon", "papaya"),
    "vegetable": (
        "carrot",
        "leek",
        "onion",
        "turnip",
        "cabbage",
        "potato",
        "radish",
        "beetroot",
        "artichoke",
        "parsnip",
    ),
    "musical instrument": (
        "violin",
        "flute",
        "trumpet",
        "cello",
        "harp",
        "oboe",
        "drum",
        "piano",
        "clarinet",
        "tuba",
    ),
    "vehicle": (
        "tram",
        "lorry",
        "bicycle",
        "bus",
        "tractor",
        "van",
        "motorcycle",
        "taxi",
        "scooter",
        "ambulance",
    ),
    "tree": ("oak", "birch", "willow", "maple", "spruce", "larch", "cedar", "poplar", "yew", "hazel"),
    "metal": ("iron", "copper", "silver", "zinc", "nickel", "tin", "lead", "titanium", "gold", "aluminium"),
    "tool": (
        "hammer",
        "chisel",
        "saw",
        "wrench",
        "screwdriver",
        "sickle",
        "rasp",
        "crowbar",
        "spanner",
        "mallet",
    ),
    "sport": (
        "tennis",
        "rugby",
        "handball",
        "rowing",
        "fencing",
        "cricket",
        "hockey",
        "judo",
        "cycling",
        "archery",
    ),
}
"""Members of each category; a word in two categories ("cricket") is never used to say no."""

PLURALS = {
    "mammal": "mammals",
    "bird": "birds",
    "fish": "kinds of fish",
    "insect": "insects",
    "fruit": "fruits",
    "vegetable": "vegetables",
    "musical instrument": "musical instruments",
    "vehicle": "vehicles",
    "tree": "trees",
    "metal": "metals",
    "tool": "tools",
    "sport": "sports",
}

MASS = frozenset({"metal", "sport"})
"""Categories whose members take no article."""

CAPITALS = {
    "France": "Paris",
    "Norway": "Oslo",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Greece": "Athens",
    "Kenya": "Nairobi",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Cuba": "Havana",
    "Finland": "Helsinki",
    "Ireland": "Dublin",
}

NAMES = (
    "Mara",
    "Jonas",
    "Priya",
    "Tomas",
    "Leila",
    "Oscar",
    "Ines",
    "Kofi",
    "Yuki",
    "Anders",
    "Rosa",
    "Samir",
)
SURNAMES = ("Hale", "Moreau", "Lindqvist", "Okafor", "Novak", "Tanaka", "Costa", "Weber", "Singh", "Brandt")
CITIES = ("Bergen", "Porto", "Leeds", "Graz", "Lyon", "Turku", "Bologna", "Ghent", "Malmo", "Galway")
MONTHS = ("March", "April", "May", "June", "July", "August", "September", "October")
ITEMS = (
    "lamps",
    "chairs",
    "notebooks",
    "kettles",
    "umbrellas",
    "blankets",
    "candles",
    "mugs",
    "clocks",
    "baskets",
)
COUNTED = (
    "apples",
    "stamps",
    "marbles",
    "pencils",
    "shells",
    "coins",
    "tickets",
    "books",
    "postcards",
    "buttons",
)

TASKS: tuple[tuple[str, str], ...] = (
    ("summarise {it}", "article"),
    ("summarise {it}", "meeting notes"),
    ("translate {it} into Spanish", "sentence"),
    ("translate {it} into German", "letter"),
    ("proofread {it}", "paragraph"),
    ("proofread {it}", "cover letter"),
    ("rewrite {it} in a formal tone", "email"),
    ("shorten {it}", "report"),
    ("classify the sentiment of {it}", "review"),
    ("correct the grammar of {it}", "text"),
    ("give a title to {it}", "story"),
    ("find the main argument of {it}", "essay"),
    ("explain {it}", "code snippet"),
    ("improve {it}", "speech"),
    ("turn {it} into a poem", "diary entry"),
    ("mark the adjectives in {it}", "passage"),
)
"""What may be asked of a text, and what the text is called."""

PROMISES = (
    "the following {thing}",
    "the {thing} below",
    "the attached {thing}",
    "the {thing} I have pasted here",
)
"""How a text that is not there is spoken of."""
