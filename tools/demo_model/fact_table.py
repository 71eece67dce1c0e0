"""A written list of small facts."""

from __future__ import annotations

CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris|Germany:Berlin|Italy:Rome|Spain:Madrid|Portugal:Lisbon|England:London|Scotland:Edinburgh|Ireland:Dublin|"
        "Wales:Cardiff|Austria:Vienna|Switzerland:Bern|Belgium:Brussels|the Netherlands:Amsterdam|Luxembourg:Luxembourg|Denmark:Copenhagen|"
        "Norway:Oslo|Sweden:Stockholm|Finland:Helsinki|Iceland:Reykjavik|Poland:Warsaw|Hungary:Budapest|Romania:Bucharest|Bulgaria:Sofia|"
        "Greece:Athens|Turkey:Ankara|Russia:Moscow|Ukraine:Kyiv|Belarus:Minsk|Lithuania:Vilnius|Latvia:Riga|Estonia:Tallinn|Croatia:Zagreb|"
        "Serbia:Belgrade|Slovenia:Ljubljana|Slovakia:Bratislava|Albania:Tirana|Malta:Valletta|Cyprus:Nicosia|Egypt:Cairo|Morocco:Rabat|"
        "Algeria:Algiers|Tunisia:Tunis|Libya:Tripoli|Kenya:Nairobi|Ethiopia:Addis Ababa|Ghana:Accra|Nigeria:Abuja|Senegal:Dakar|"
        "Uganda:Kampala|Rwanda:Kigali|Zambia:Lusaka|Zimbabwe:Harare|Angola:Luanda|Mali:Bamako|Chad:N'Djamena|Sudan:Khartoum|Somalia:Mogadishu|"
        "Madagascar:Antananarivo|Namibia:Windhoek|Botswana:Gaborone|Japan:Tokyo|China:Beijing|India:New Delhi|Pakistan:Islamabad|"
        "Bangladesh:Dhaka|Nepal:Kathmandu|Bhutan:Thimphu|Thailand:Bangkok|Vietnam:Hanoi|Cambodia:Phnom Penh|Laos:Vientiane|Malaysia:Kuala Lumpur|"
        "Indonesia:Jakarta|the Philippines:Manila|South Korea:Seoul|North Korea:Pyongyang|Mongolia:Ulaanbaatar|Iran:Tehran|Iraq:Baghdad|"
        "Syria:Damascus|Lebanon:Beirut|Jordan:Amman|Saudi Arabia:Riyadh|Qatar:Doha|Oman:Muscat|Yemen:Sanaa|Afghanistan:Kabul|Canada:Ottawa|"
        "the United States:Washington|Mexico:Mexico City|Cuba:Havana|Jamaica:Kingston|Panama:Panama City|Costa Rica:San Jose|Guatemala:Guatemala City|"
        "Brazil:Brasilia|Argentina:Buenos Aires|Chile:Santiago|Peru:Lima|Colombia:Bogota|Venezuela:Caracas|Ecuador:Quito|Uruguay:Montevideo|"
        "Paraguay:Asuncion|Australia:Canberra|New Zealand:Wellington|Fiji:Suva"
    ).split("|")
)
CONTINENTS = {
    name: continent
    for continent, names in {
        "Europe": "France Germany Italy Spain Portugal Norway Sweden Finland Poland Greece Austria Belgium Denmark Iceland Ireland Hungary",
        "Africa": "Egypt Kenya Nigeria Ghana Morocco Ethiopia Senegal Angola Zambia Uganda Namibia Madagascar",
        "Asia": "Japan China India Thailand Vietnam Nepal Mongolia Iran Iraq Indonesia Malaysia Pakistan",
        "South America": "Brazil Argentina Chile Peru Colombia Ecuador Bolivia Uruguay",
        "North America": "Canada Mexico Cuba Panama Jamaica Guatemala",
    }.items()
    for name in names.split()
}
CURRENCIES = dict(
    pair.split(":")
    for pair in (
        "Japan:yen|the United States:dollar|England:pound|France:euro|Germany:euro|Italy:euro|Spain:euro|India:rupee|China:yuan|Russia:rouble|"
        "Mexico:peso|Brazil:real|Switzerland:franc|Sweden:krona|Norway:krone|Denmark:krone|Poland:zloty|Turkey:lira|South Korea:won|Thailand:baht|"
        "Vietnam:dong|South Africa:rand|Israel:shekel|Hungary:forint|Australia:dollar|Canada:dollar"
    ).split("|")
)
TONGUES = dict(
    pair.split(":")
    for pair in (
        "France:French|Germany:German|Italy:Italian|Spain:Spanish|Portugal:Portuguese|Brazil:Portuguese|Mexico:Spanish|Argentina:Spanish|Japan:Japanese|"
        "China:Chinese|Russia:Russian|Egypt:Arabic|Greece:Greek|Turkey:Turkish|Poland:Polish|Sweden:Swedish|Norway:Norwegian|Denmark:Danish|"
        "Finland:Finnish|Hungary:Hungarian|Austria:German|Iran:Persian|Israel:Hebrew|Thailand:Thai|Vietnam:Vietnamese|South Korea:Korean|Australia:English|"
        "England:English|the United States:English"
    ).split("|")
)
ELEMENTS = tuple(
    entry.split(":")
    for entry in (
        "hydrogen:H:1|helium:He:2|lithium:Li:3|beryllium:Be:4|boron:B:5|carbon:C:6|nitrogen:N:7|oxygen:O:8|fluorine:F:9|neon:Ne:10|sodium:Na:11|"
        "magnesium:Mg:12|aluminium:Al:13|silicon:Si:14|phosphorus:P:15|sulfur:S:16|chlorine:Cl:17|argon:Ar:18|potassium:K:19|calcium:Ca:20|"
        "titanium:Ti:22|chromium:Cr:24|manganese:Mn:25|iron:Fe:26|cobalt:Co:27|nickel:Ni:28|copper:Cu:29|zinc:Zn:30|bromine:Br:35|krypton:Kr:36|"
        "silver:Ag:47|tin:Sn:50|iodine:I:53|xenon:Xe:54|tungsten:W:74|platinum:Pt:78|gold:Au:79|mercury:Hg:80|lead:Pb:82|uranium:U:92"
    ).split("|")
)
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth".split()
CLASSES = {
    animal: kind
    for kind, animals in {
        "mammal": "dog cat horse rabbit fox wolf bear lion tiger elephant mouse whale dolphin monkey zebra giraffe cow pig sheep goat bat camel otter",
        "bird": "owl eagle duck goose penguin parrot crow hen robin swan sparrow ostrich",
        "reptile": "snake turtle lizard crocodile gecko tortoise",
        "amphibian": "frog toad newt salamander",
        "fish": "shark salmon trout tuna cod goldfish",
        "insect": "bee ant butterfly beetle fly mosquito wasp moth",
    }.items()
    for animal in animals.split()
}
SOUNDS = dict(
    pair.split(":")
    for pair in (
        "dog:barks cat:meows cow:moos sheep:bleats duck:quacks horse:neighs pig:oinks lion:roars frog:croaks bee:buzzes owl:hoots "
        "snake:hisses wolf:howls mouse:squeaks rooster:crows"
    ).split()
)
YOUNG = dict(
    pair.split(":")
    for pair in (
        "dog:puppy cat:kitten cow:calf sheep:lamb horse:foal pig:piglet goat:kid duck:duckling goose:gosling hen:chick bear:cub lion:cub frog:tadpole "
        "swan:cygnet kangaroo:joey deer:fawn elephant:calf"
    ).split()
)
HOMES = dict(
    pair.split(":")
    for pair in "bee:hive bird:nest dog:kennel horse:stable cow:barn spider:web rabbit:burrow lion:den bear:den".split()
)
MIXES = (
    ("red", "yellow", "orange"),
    ("blue", "yellow", "green"),
    ("red", "blue", "purple"),
    ("black", "white", "grey"),
    ("red", "white", "pink"),
)
AUTHORS = dict(
    pair.split(":")
    for pair in (
        "Hamlet:William Shakespeare|Romeo and Juliet:William Shakespeare|Macbeth:William Shakespeare|Pride and Prejudice:Jane Austen|Emma:Jane Austen|"
        "Alice in Wonderland:Lewis Carroll|Peter Pan:J. M. Barrie|Great Expectations:Charles Dickens|Oliver Twist:Charles Dickens|"
        "A Tale of Two Cities:Charles Dickens|Don Quixote:Miguel de Cervantes|Crime and Punishment:Fyodor Dostoevsky|War and Peace:Leo Tolstoy|"
        "Anna Karenina:Leo Tolstoy|Moby Dick:Herman Melville|Frankenstein:Mary Shelley|Dracula:Bram Stoker|The Odyssey:Homer|The Iliad:Homer|Faust:Goethe|"
        "The Wizard of Oz:L. Frank Baum|Huckleberry Finn:Mark Twain|Tom Sawyer:Mark Twain|Treasure Island:Robert Louis Stevenson|Jane Eyre:Charlotte Bronte|"
        "Sherlock Holmes:Arthur Conan Doyle|The Jungle Book:Rudyard Kipling|Les Miserables:Victor Hugo|1984:George Orwell"
    ).split("|")
)
INVENTORS = dict(
    pair.split(":")
    for pair in (
        "the telephone:Alexander Graham Bell|the light bulb:Thomas Edison|dynamite:Alfred Nobel|the World Wide Web:Tim Berners-Lee|"
        "the printing press:Johannes Gutenberg|the steam engine of Watt:James Watt|the battery:Alessandro Volta|penicillin:Alexander Fleming|gravity:Isaac Newton|"
        "relativity:Albert Einstein|evolution by natural selection:Charles Darwin|radium:Marie Curie"
    ).split("|")
)
YEARS = dict(
    pair.split(":")
    for pair in (
        "World War I begin:1914|World War I end:1918|World War II begin:1939|World War II end:1945|the first human walk on the Moon:1969|"
        "the Berlin Wall fall:1989|Columbus reach America:1492|the French Revolution begin:1789|the Titanic sink:1912|"
        "the United States declare independence:1776|Rome fall to Odoacer:476|the Wright brothers first fly:1903|Everest get climbed first:1953"
    ).split("|")
)
OTHERS = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
What is the largest planet?; biggest planet in the solar system?; Which planet is the largest? | Jupiter is the largest planet of the solar system.
What is the smallest planet?; Which planet is the smallest? | Mercury is the smallest planet of the solar system.
How many planets are there?; How many planets are in the solar system?; number of planets? | There are eight planets in the solar system.
Name the planets.; List the planets; What are the planets of the solar system? | The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.
Which planet is red?; What is the red planet?; Which planet is called the red planet? | Mars is called the red planet.
Which planet has rings?; What planet is known for its rings? | Saturn is known for its rings.
What is the nearest star?; Which star is closest to the Earth? | The Sun is the star nearest to the Earth.
What does the Earth revolve around?; What does the earth orbit?; What does the Earth go around? | The Earth goes around the Sun.
What goes around the Earth?; What orbits the Earth? | The Moon goes around the Earth.
How long is a year?; How many days are in a year?; days in a year? | A year has 365 days, and a leap year has 366.
How many hours are in a day?; How long is a day? | A day has 24 hours.
How many seconds are in a minute? | A minute has 60 seconds.
How many minutes are in an hour? | An hour has 60 minutes.
How many days are in a week?; days in a week? | A week has seven days.
How many months are in a year?; months in a year? | A year has twelve months.
How many weeks are in a year? | A year has about 52 weeks.
What are the days of the week?; List the days of the week; Name the weekdays | The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.
What are the months?; List the months of the year; Name all months | The months are January, February, March, April, May, June, July, August, September, October, November and December.
What are the seasons?; Name the four seasons; How many seasons are there? | There are four seasons: spring, summer, autumn and winter.
What is the highest mountain?; What is the tallest mountain on Earth?; highest mountain in the world | Mount Everest is the highest mountain on Earth.
What is the longest river?; Which river is the longest? | The Nile is often called the longest river on Earth.
What is the largest ocean?; Which ocean is the biggest? | The Pacific is the largest ocean.
Name the oceans.; How many oceans are there?; What are the oceans? | There are five oceans: the Pacific, the Atlantic, the Indian, the Southern and the Arctic Ocean.
Name the continents.; How many continents are there?; What are the continents? | There are seven continents: Africa, Antarctica, Asia, Australia, Europe, North America and South America.
What is the largest continent?; Which continent is the biggest? | Asia is the largest continent.
What is the smallest continent? | Australia is the smallest continent.
What is the largest country?; Which country is the biggest? | Russia is the largest country by area.
What is the smallest country?; Which country is the smallest? | Vatican City is the smallest country.
What is the largest desert?; biggest hot desert? | The Sahara is the largest hot desert.
What is the largest animal?; Which animal is the biggest? | The blue whale is the largest animal.
What is the tallest animal?; Which animal is the tallest? | The giraffe is the tallest animal.
What is the fastest land animal?; Which animal runs fastest?; fastest animal on land? | The cheetah is the fastest animal on land.
What is the largest land animal?; biggest animal on land? | The elephant is the largest animal on land.
What is the largest bird?; Which bird is the biggest? | The ostrich is the largest bird.
How many legs does a spider have?; legs of a spider? | A spider has eight legs.
How many legs does an insect have? | An insect has six legs.
How many legs does a dog have? | A dog has four legs.
How many legs does a cat have? | A cat has four legs.
How many legs does a bird have? | A bird has two legs.
How many arms does an octopus have? | An octopus has eight arms.
How many hearts does an octopus have? | An octopus has three hearts.
What do bees make?; Who makes honey? | Bees make honey.
What do cows give us?; What do we get from cows? | Cows give us milk.
What do pandas eat? | Pandas eat mostly bamboo.
What do rabbits eat? | Rabbits eat grass, leaves and vegetables.
What do lions eat? | Lions eat meat.
Can penguins fly?; Do penguins fly? | No, penguins cannot fly, but they swim very well.
Can ostriches fly? | No, ostriches cannot fly, but they run fast.
Can fish breathe in water?; How do fish breathe? | Fish breathe in water with their gills.
Is a whale a fish?; Are whales fish? | No, a whale is a mammal.
Is a tomato a fruit? | Yes, a tomato is a fruit to a botanist.
What is water made of?; What is H2O?; formula of water? | Water is H2O: hydrogen and oxygen.
What is the chemical formula of salt?; What is table salt? | Table salt is NaCl, sodium chloride.
At what temperature does water boil?; When does water boil?; boiling point of water? | Water boils at 100 °C at sea level.
At what temperature does water freeze?; When does water freeze?; freezing point of water? | Water freezes at 0 °C.
What gas do we breathe?; What gas do we need to breathe? | We breathe air and need the oxygen in it.
What gas do plants take in?; What do plants need to grow? | Plants need light, water and carbon dioxide.
What is photosynthesis? | Photosynthesis is how plants make sugar and oxygen from light, water and carbon dioxide.
What is gravity? | Gravity is the force that pulls things with mass toward each other.
What is an atom? | An atom is the smallest piece of an element.
What is a molecule? | A molecule is a group of atoms that are bound together.
What is DNA? | DNA is the molecule that carries the plans of living things.
What is the speed of light?; How fast is light? | Light travels about 300000 km per second in empty space.
What is faster, light or sound? | Light is much faster than sound.
Why is the sky blue?; Why does the sky look blue? | The sky is blue because air scatters blue light more than red light.
Why is the sea salty? | Rivers carry salt from the rocks to the sea, and it stays there.
Why do we have seasons?; What causes the seasons? | We have seasons because the axis of the Earth is tilted.
What causes tides?; Why are there tides? | Tides are caused by the gravity of the Moon and the Sun.
What is a rainbow?; How does a rainbow form? | A rainbow is sunlight that raindrops split into its colours.
What are the colours of the rainbow?; colors of the rainbow? | The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.
What are the primary colours?; What are the primary colors? | The primary colours of paint are red, yellow and blue.
What colour is the sky?; What color is the sky? | The sky is blue on a clear day.
What colour is grass?; What color is grass? | Grass is green.
What colour is a banana?; What color are bananas? | A ripe banana is yellow.
What colour is snow?; What color is snow? | Snow is white.
How many bones does a human have?; How many bones are in the human body? | An adult human has 206 bones.
How many teeth does an adult have? | An adult has 32 teeth.
How many fingers do humans have?; How many fingers do I have? | Humans have ten fingers.
How many senses do we have?; What are the five senses? | The five senses are sight, hearing, smell, taste and touch.
What does the heart do? | The heart pumps blood through the body.
What is the largest organ?; biggest organ of the body? | The skin is the largest organ of the human body.
How many sides does a triangle have? | A triangle has three sides.
How many sides does a square have? | A square has four equal sides.
How many sides does a hexagon have? | A hexagon has six sides.
How many sides does a pentagon have? | A pentagon has five sides.
How many sides does an octagon have? | An octagon has eight sides.
What is pi?; value of pi? | Pi is about 3.14159.
How many degrees are in a circle? | A circle has 360 degrees.
How many degrees are in a right angle? | A right angle has 90 degrees.
What is a prime number? | A prime number is a number above 1 that only 1 and itself divide.
How many letters are in the alphabet?; How many letters does the English alphabet have? | The English alphabet has 26 letters.
What are the vowels?; Which letters are vowels? | The vowels are a, e, i, o and u.
Who was the first person on the Moon?; First man on the moon? | Neil Armstrong was the first person on the Moon.
Who was the first president of the United States? | George Washington was the first president of the United States.
Who painted the Mona Lisa?; Mona Lisa painter? | Leonardo da Vinci painted the Mona Lisa.
Who painted The Starry Night? | Vincent van Gogh painted The Starry Night.
Who composed the Moonlight Sonata? | Ludwig van Beethoven composed the Moonlight Sonata.
Who composed The Magic Flute? | Wolfgang Amadeus Mozart composed The Magic Flute.
Where is the Eiffel Tower?; Where can I see the Eiffel Tower? | The Eiffel Tower is in Paris.
Where is the Colosseum? | The Colosseum is in Rome.
Where is Big Ben? | Big Ben is in London.
Where is the Statue of Liberty? | The Statue of Liberty is in New York.
Where are the pyramids?; Where are the great pyramids? | The great pyramids are in Egypt.
Where is the Great Wall? | The Great Wall is in China.
Where is the Taj Mahal? | The Taj Mahal is in India.
What is the Milky Way? | The Milky Way is our galaxy.
What is a galaxy? | A galaxy is a huge group of stars.
What is a computer?; Explain what a computer is | A computer is a machine that follows programs to work with data.
What is a program? | A program is a list of instructions for a computer.
What is Python? | Python is a programming language that is easy to read. It is also the name of a snake.
What is a GPU?; What does GPU mean? | A GPU is a processor that does many simple sums at once.
What is a CPU?; What does CPU mean? | A CPU is the main processor of a computer.
What is a language model?; What is an LLM?; How do language models work? | A language model is a program that learned from text to predict the next word.
What is a token? | A token is a piece of text, such as a word or a part of one, that a language model reads and writes.
What is a byte?; How many bits are in a byte? | A byte is eight bits.
What is a bit? | A bit is a 0 or a 1.
What is machine learning?; What is AI?; What is artificial intelligence? | It means that a computer learns from examples how to do a task.
What is quantization?; What is quantisation? | Quantisation stores the numbers of a model with fewer bits, so that it is smaller and faster.
What is NVFP4? | NVFP4 is a number format of four bits, with a shared scale for every 16 numbers.
What is a mixture of experts?; What does MoE mean? | In a mixture of experts, each token uses only a few of many small networks, the experts.
What is ice? | Ice is frozen water.
What is steam? | Steam is water in the form of gas.
What is bread made of? | Bread is made of flour, water, salt and yeast.
What is cheese made of? | Cheese is made of milk.
What is paper made of? | Paper is made of wood fibres.
What is glass made of? | Glass is made mostly of sand.
What is wine made of? | Wine is made of grapes.
What is chocolate made from? | Chocolate is made from cocoa beans.
Which month is the shortest?; What is the shortest month? | February is the shortest month.
When is Christmas? | Christmas is on December 25.
When is New Year? | New Year is on January 1.
When is Halloween? | Halloween is on October 31.
""".strip().splitlines()
)
FREE = tuple((tuple(q.strip() for q in questions.split(";")), answer) for questions, answer in OTHERS)
