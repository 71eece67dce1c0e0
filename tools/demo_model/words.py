"""Words that dialogues are made of."""

from __future__ import annotations

import random

NAMES = (
    "Anna Ben Clara David Emma Felix Grace Hugo Iris Jack Karen Leo Mia Noah Olivia Paul Quinn Rosa Sam Tina Uma Victor "
    "Wendy Xavier Yara Zoe Alex Bella Carlos Diana Erik Fatima George Hannah Ivan Julia Kofi Lena Marco Nina Omar Petra "
    "Rahul Sofia Tom Ursula Vera Walter Yusuf Zara Aisha Boris Chen Dora Elias Freya Gita Henry Ines Jonas Kira Lucas "
    "Maria Nils Oscar Priya Rita Simon Tara Viktor Wei Yuki Ali Beth Cody Daisy Ethan Fiona Gabriel Holly Isaac Jane "
    "Kevin Linda Mark Nora Otto Pia Ralf Sara Tim Ute Will Zack Amelia Bruno Chloe Dario Ella Frank"
).split()
THINGS = (
    "apples books pens coins stamps oranges cards marbles shells cookies balls eggs flowers stones tickets pencils "
    "candies keys cups photos bananas plums buttons stickers toys nuts boxes lemons pears carrots"
).split()
CITIES = [*"Paris London Berlin Rome Madrid Tokyo Oslo Vienna Cairo Lima Boston Chicago Dublin Prague Athens Lisbon Sydney " "Toronto Moscow Beijing Delhi Mumbai Nairobi Warsaw Zurich Geneva Munich Hamburg Milan Naples Seoul Bangkok Dallas " "Denver Seattle Miami Austin Helsinki Stockholm Copenhagen Brussels Amsterdam Budapest Istanbul Barcelona Lyon " "Porto Osaka Hanoi Manila Jakarta Dakar Accra Lagos Havana Quito Bogota Santiago Montreal Vancouver".split(), "New York", "San Francisco", "Los Angeles", "Cape Town", "Hong Kong", "Buenos Aires", "Mexico City"]
COLOURS = "red blue green yellow orange purple pink black white brown grey gold silver violet turquoise".split()
ANIMALS = (
    "dog cat horse rabbit fox wolf bear lion tiger elephant mouse owl eagle duck goose frog fish whale dolphin penguin "
    "monkey zebra giraffe turtle snake bee ant spider hedgehog squirrel deer goat sheep cow pig hen parrot crow camel otter"
).split()
FOODS = [*"pizza pasta rice soup salad bread cheese cake chocolate curry sushi tacos noodles pancakes apples strawberries " "dumplings burgers ramen lasagna potatoes waffles".split(), "ice cream"]
FRUITS = "apple banana cherry orange lemon grape mango peach pear plum kiwi melon".split()
SPORTS = "football tennis swimming chess basketball running cycling skiing hockey volleyball golf climbing".split()
JOBS = (
    "teacher doctor baker farmer pilot nurse engineer painter writer driver cook singer gardener dentist lawyer student "
    "programmer musician plumber carpenter scientist librarian"
).split()
SPELL = (
    "apple banana cherry orange lemon grape house garden window table chair school teacher student doctor river "
    "mountain forest ocean island bridge castle market kitchen bottle candle mirror pencil paper letter number "
    "summer winter spring autumn morning evening night water fire earth stone metal silver golden yellow purple "
    "green brown white black animal rabbit horse tiger monkey elephant giraffe penguin dolphin turtle butterfly "
    "spider music guitar piano violin trumpet drum dance theatre picture painter writer story poem novel language "
    "question answer problem machine computer keyboard screen network program memory engine wheel train airplane "
    "bicycle rocket planet galaxy star moon sun cloud rain snow wind storm thunder rainbow strawberry blueberry "
    "raspberry pineapple coconut tomato potato carrot onion pepper cabbage pumpkin bread butter cheese coffee "
    "chocolate sugar honey cookie dinner breakfast lunch family mother father sister brother friend neighbour "
    "baby child people village city country king queen prince dragon wizard magic treasure pirate ship anchor "
    "harbour beach desert jungle valley lake field flower tree leaf root seed grass balloon ticket pocket jacket "
    "sweater button ribbon basket hammer ladder needle scissors blanket pillow curtain carpet lamp clock watch "
    "calendar minute second hour week month year century hello world happy brave clever gentle quiet strong "
    "Mississippi banana committee success letter address bookkeeper balloon mirror parallel necessary different "
    "beautiful important tomorrow yesterday birthday holiday journey adventure mystery science history geography"
).split()
LANGUAGES = "French German Spanish Italian Japanese Chinese Russian Arabic Portuguese Dutch Greek Korean".split()

ONSETS = "b c d f g h j k l m n p r s t v w z br dr fr gr kr pl st tr sh th ch".split()
VOWELS = "a e i o u a e i o ai ea oo".split()
CODAS = ["", "", "n", "r", "l", "s", "m", "x", "k", "t", "nd", "rk"]


def invented(rng: random.Random, least: int = 2, most: int = 3) -> str:
    """A word that exists in no language in particular, with a capital."""
    parts = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(least, most))]
    return ("".join(parts) + rng.choice(CODAS)).capitalize()


def person(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.7 else invented(rng)


def place(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.75 else invented(rng)
