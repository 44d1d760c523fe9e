"""What the training prompts are about. Written for this project; the prompts of held_out.py have other topics."""

from __future__ import annotations

SUBJECTS = """
the water cycle; photosynthesis; volcanoes; black holes; the phases of the moon; tides; earthquakes; rainbows; magnets;
electricity; gravity; sound waves; the speed of light; atoms; the periodic table; acids and bases; rust; combustion;
evaporation; glaciers; deserts; coral reefs; rainforests; bees; ants; whales; migration of birds; dinosaurs; fossils;
evolution; DNA; the human heart; the lungs; the brain; sleep; dreams; memory; vaccines; bacteria; viruses; vitamins;
exercise; stress; the immune system; the digestive system; bones; muscles; eyesight; hearing; taste; the Roman Empire;
ancient Egypt; the Silk Road; the printing press; the Industrial Revolution; the French Revolution; the Renaissance;
the Middle Ages; castles; the Vikings; the Great Wall of China; the Moon landing; the history of money; the history of
writing; the history of chess; the Olympic Games; democracy; constitutions; elections; the United Nations; taxes;
inflation; supply and demand; banks; insurance; the stock market; startups; teamwork; leadership; negotiation; public
speaking; time management; job interviews; writing a resume; customer service; marketing; bread; pasta; soup; salad;
coffee; tea; chocolate; cheese; rice; spices; breakfast; picnics; gardening; compost; tomatoes; trees; houseplants;
pets; dogs; cats; horses; fish tanks; bicycles; trains; airplanes; ships; electric cars; bridges; skyscrapers; tunnels;
maps; compasses; clocks; calendars; paper; glass; steel; plastic; recycling; solar panels; wind turbines; batteries;
the internet; email; search engines; smartphones; computers; robots; artificial intelligence; encryption; passwords;
databases; operating systems; open source software; video games; photography; painting; sculpture; music theory; the
violin; the guitar; drums; opera; jazz; dance; theatre; poetry; novels; fairy tales; myths; philosophy; ethics; logic;
mathematics; prime numbers; fractions; geometry; probability; statistics; algebra; calculus; the number zero; puzzles;
football; basketball; tennis; swimming; running; yoga; hiking; camping; skiing; sailing; fishing; chess openings; card
games; learning a language; reading habits; school; homework; friendship; family; kindness; patience; courage; humour;
birthdays; weddings; holidays; travel; packing a suitcase; hotels; museums; libraries; cities; villages; islands;
mountains; rivers; lakes; forests; oceans; weather forecasts; snow; thunderstorms; climate change; first aid; road
safety; saving money; cleaning a kitchen; moving to a new home; choosing a gift; planning a party; volunteering; a
noisy dishwasher; a leaking tap; a blocked drain; a squeaking door; curtains; a kitchen knife; a cast-iron pan; a slow
cooker; a vegetable garden on a balcony; pruning roses; a bird feeder; a rain barrel; beekeeping; hens in the back
yard; a guinea pig; a shy cat; a puppy's first night; a flat tyre; a first car; parking in a narrow street; a night
train; a delayed flight; a lost suitcase; a road trip; a youth hostel; a mountain hut; a lake in winter; a beach in
autumn; an old castle; a small museum; a flea market; a second-hand book; a fountain pen; a diary; a letter to a
landlord; a letter to a newspaper; a speech at a retirement; a toast; an apology; a thank-you note; a complaint about a
late parcel; a reminder about an unpaid bill; a reference for a former colleague; a first day at work; a difficult
boss; a job in a bakery; night shifts; a pay rise; part-time work; a long meeting; a team lunch; minutes of a meeting;
a to-do list; a budget for a student; a loan between friends; a savings account; pensions; a mortgage; a lottery;
barter; tariffs; trade unions; strikes; patents; copyright; a jury; witnesses; neighbourhood disputes; town councils;
passports; borders; refugees; flags; national anthems; borrowed words; dialects; sign language; braille; shorthand;
punctuation; rhymes; limericks; haiku; detective stories; ghost stories; fables; biographies; footnotes; translations;
subtitles; stunts; puppets; circuses; magic tricks; masks; costumes; wigs; ballet; choirs; organs; flutes; the cello;
bagpipes; lullabies; national parks; waterfalls; caves; geysers; sand dunes; swamps; fog; hail; frost; drought; floods;
avalanches; tsunamis; meteor showers; comets; satellites; space stations; Mars; Saturn's rings; the Sun; eclipses;
seasons; time zones; leap years; thermometers; barometers; microscopes; telescopes; X-rays; lasers; mirrors; prisms;
lenses; pendulums; levers; pulleys; gears; springs; screws; nails; glue; paint; soap; candles; matches; concrete;
bricks; wood; rubber; wool; silk; cotton; leather; gold; aluminium; salt; sugar; vinegar; yeast; mould; mushrooms;
ferns; moss; cacti; seaweed; jellyfish; octopuses; sharks; salmon; frogs; snakes; turtles; owls; penguins; swallows;
woodpeckers; bats; squirrels; foxes; wolves; bears; elephants; giraffes; camels; spiders; butterflies; snails;
earthworms; fevers; headaches; allergies; sunburn; a sprained ankle; a toothache; glasses; hearing aids; posture;
stretching; breathing; meditation; boredom; jealousy; shyness; gratitude; curiosity; habits; promises; secrets; small
talk; good manners; table tennis; rowing; climbing; archery; judo; marathons; cycling races; juggling; kites; model
trains; knitting; sewing; pottery; origami; crosswords; sudoku; dominoes; backgammon; board games for two; web
browsers; spam; backups; viruses on computers; spreadsheets; fonts; pixels; bits and bytes; compilers; recursion;
sorting; hash tables; networks; the cloud; chatbots; self-driving cars; drones; 3D printers; escalators; lifts; traffic
lights; roundabouts; canals; dams; harbours; windmills; power lines; fuses; light bulbs; refrigerators; vacuum
cleaners; sewing machines; typewriters; radios; vinyl records; film cameras; pencils; erasers; scissors; umbrellas;
buttons; shoelaces; hats; pockets; keys and locks; stairs; windows; roofs; chimneys; fences; wells
"""

QUESTIONS = """
What is the most important thing to know about {}?
Explain {} to a child.
Explain {} in simple words.
Write a short paragraph about {}.
Give me five interesting facts about {}.
List three common mistakes people make with {}.
Write a short story that has to do with {}.
Write a poem about {}.
What are the advantages and disadvantages of {}?
How would you teach a class about {}?
Tell me about the history of {}.
Why does {} matter?
I know nothing about {}. Where should I start?
Write a dialogue between two friends about {}.
Compare {} with something similar.
Summarise what is known about {} in three sentences.
Write an email to a colleague about {}.
What questions should I ask an expert on {}?
Make a step-by-step plan for learning more about {}.
Write an introduction for an article about {}.
Give me a quiz with four questions on {}, with the answers.
What would the world be like without {}?
Describe {} using an analogy.
Make a table of contents for a book about {}.
What do beginners usually get wrong about {}?
How does one deal with {}?
How do I get started with {} on a small budget?
Help me write a polite message about {}.
Write a short announcement about {}.
Give me three ideas that have to do with {}.
What should I think about before I decide anything about {}?
Tell me a short bedtime story about {}.
What is a common misunderstanding about {}, and what is true?
Describe {} to somebody who has never heard of it.
Describe a day on which {} plays a part.
What are good questions about {} for a school exam? Answer each of them.
Give me some advice on {}.
Where did {} come from, and how has it changed?
How would people have talked about {} a hundred years ago?
Write a review, half serious, of {}.
Write a short speech about {}.
List everything that I need for {}, and say why.
Why do people like {}, and why do some not?
Explain how {} works, step by step.
What is the difference between {} and what people often confuse with it?
Write a funny advertisement for {}.
Give me a definition of {} and two examples.
"""

CODE_TASKS = """
reverses a string; checks whether a word is a palindrome; counts the vowels in a text; counts how often each word
occurs; finds the largest number in a list; computes the average of a list; computes the median; sorts a list with
bubble sort; sorts a list with merge sort; sorts a list with quicksort; searches a sorted list with binary search;
merges two sorted lists; removes duplicates from a list; flattens a nested list; transposes a matrix; multiplies two
matrices; computes factorials; computes Fibonacci numbers; tests whether a number is prime; lists all primes below n;
computes the greatest common divisor; converts Celsius to Fahrenheit; converts a number to binary; converts Roman
numerals to integers; validates an email address; generates a random password; reads a CSV file and prints its rows;
writes a list to a JSON file; counts the lines of a file; finds all files with a given extension; downloads a web page;
parses a date; computes the days between two dates; prints a calendar; implements a stack; implements a queue;
implements a linked list; implements a binary tree; walks a tree in order; finds the shortest path in a graph; does a
breadth-first search; does a depth-first search; implements a hash map; implements an LRU cache; memoises a function;
measures how long a function takes; retries a function that fails; logs its arguments; splits a list into chunks;
rotates a list; finds pairs with a given sum; finds the longest common prefix; checks balanced brackets; evaluates an
arithmetic expression; plays rock, paper, scissors; plays hangman; simulates dice rolls; shuffles a deck of cards;
converts text to title case; encrypts text with a Caesar cipher; computes a checksum; compresses repeated characters;
formats a number with commas; converts seconds to hours and minutes; finds anagrams; generates all permutations;
generates subsets; solves the Tower of Hanoi; draws a triangle of stars; prints a multiplication table; checks for leap
years; models a bank account; models a shopping cart; models a library of books; reads lines from standard input;
parses command-line arguments; groups words by length; finds the smallest missing positive number in a list; tells
whether two words are anagrams; swaps the keys and values of a dictionary; merges two dictionaries and adds their
values; sorts a list of dictionaries by a key; finds the most common element of a list; moves all zeros of a list to
its end; computes the running sum of a list; splits a text into sentences; replaces tabs by spaces; strips HTML tags
from a text; counts the words of a file; finds duplicate files in a folder; prints the tail of a log file; appends a
line to a file; copies a folder; computes the size of a folder; reads settings from an environment variable; converts a
JSON file to CSV; converts inches to centimetres; converts a number to words; converts a string to snake case; converts
a date to a weekday; adds two times of day; computes somebody's age; computes compound interest; splits a bill between
friends; gives change with the fewest coins; computes the area of a polygon; tests whether a point lies in a circle;
rotates an image by ninety degrees; draws a histogram with characters; inverts a binary tree; computes the depth of a
tree; detects a cycle in a linked list; reverses a linked list; implements a priority queue; implements a trie;
implements a ring buffer; implements a bit set; finds the strongly connected parts of a graph; sorts a graph
topologically; solves a maze; solves a sudoku; places eight queens; plays tic-tac-toe; plays the game of life; guesses
a number; deals cards to players; rolls dice until a six comes; picks a random line of a file; hashes a password;
checks a credit card number; validates an IP address; matches a pattern with wildcards; tokenises an expression; parses
a URL; builds a query string; sends an email; reads a temperature sensor; caches results for a minute; limits how often
a function is called; runs two functions at once; waits for a thread; locks a shared counter; times out a slow call;
logs to a file; prints a progress bar; formats a table; translates text with a dictionary; counts down to a date; keeps
a to-do list; keeps a high-score table; models a parking garage; models a lift; models a vending machine; models a deck
of cards; models a clock; models a student with marks; models a hotel with rooms; models a calendar of appointments;
models a chess piece
"""

CODE_REQUESTS = """
Write a Python function that {}.
Write a Python function that {}. Add a docstring and type hints.
Write a Python class or function that {}, and show how to use it.
Write a JavaScript function that {}.
Show me Python code that {}, with comments.
How do I write a program that {}?
Write unit tests for a Python function that {}.
Write a C function that {}.
Explain step by step how to write a Python function that {}.
Write a short Python script that {}.
Write a Java method or class that {}.
Write a Python function that {}, without imports.
What is the simplest way to write code that {}?
Write a Go function that {}.
Write a recursive function that {}, if that makes sense, and explain it.
"""

CODE_QUESTIONS = """
Explain what this Python code does:
Add comments to this Python code:
Write a docstring for this Python function:
Rewrite this Python code so that it is easier to read:
Find possible bugs in this Python code:
Repeat this Python code, but add type hints:
Copy this code and rename its first argument to value:
"""

TEXT_REQUESTS = """
Summarise the following text in two sentences:
List the main points of this text:
Rewrite this text in simpler words:
Correct the spelling and grammar of this text and give it back:
Repeat this text word for word:
Turn this text into a list of bullet points:
What is this text about?
Write three questions that this text answers:
Rewrite this text as if it were a letter:
"""


def lines(text: str) -> list[str]:
    return [line for line in text.strip().splitlines() if line]


def phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.replace("\n", " ").split(";")]
