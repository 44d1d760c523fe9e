"""What the training prompts are about. Written for this project; the prompts of held_out.py have other topics."""

from __future__ import annotations

SUBJECTS = """
the water cycle; photosynthesis; volcanoes; black holes; the phases of the moon; tides; earthquakes; rainbows;
magnets; electricity; gravity; sound waves; the speed of light; atoms; the periodic table; acids and bases; rust;
combustion; evaporation; glaciers; deserts; coral reefs; rainforests; bees; ants; whales; migration of birds;
dinosaurs; fossils; evolution; DNA; the human heart; the lungs; the brain; sleep; dreams; memory; vaccines; bacteria;
viruses; vitamins; exercise; stress; the immune system; the digestive system; bones; muscles; eyesight; hearing;
taste; the Roman Empire; ancient Egypt; the Silk Road; the printing press; the Industrial Revolution; the French
Revolution; the Renaissance; the Middle Ages; castles; the Vikings; the Great Wall of China; the Moon landing; the
history of money; the history of writing; the history of chess; the Olympic Games; democracy; constitutions;
elections; the United Nations; taxes; inflation; supply and demand; banks; insurance; the stock market; startups;
teamwork; leadership; negotiation; public speaking; time management; job interviews; writing a resume; customer
service; marketing; bread; pasta; soup; salad; coffee; tea; chocolate; cheese; rice; spices; breakfast; picnics;
gardening; compost; tomatoes; trees; houseplants; pets; dogs; cats; horses; fish tanks; bicycles; trains; airplanes;
ships; electric cars; bridges; skyscrapers; tunnels; maps; compasses; clocks; calendars; paper; glass; steel; plastic;
recycling; solar panels; wind turbines; batteries; the internet; email; search engines; smartphones; computers;
robots; artificial intelligence; encryption; passwords; databases; operating systems; open source software; video
games; photography; painting; sculpture; music theory; the violin; the guitar; drums; opera; jazz; dance; theatre;
poetry; novels; fairy tales; myths; philosophy; ethics; logic; mathematics; prime numbers; fractions; geometry;
probability; statistics; algebra; calculus; the number zero; puzzles; football; basketball; tennis; swimming; running;
yoga; hiking; camping; skiing; sailing; fishing; chess openings; card games; learning a language; reading habits;
school; homework; friendship; family; kindness; patience; courage; humour; birthdays; weddings; holidays; travel;
packing a suitcase; hotels; museums; libraries; cities; villages; islands; mountains; rivers; lakes; forests; oceans;
weather forecasts; snow; thunderstorms; climate change; first aid; road safety; saving money; cleaning a kitchen;
moving to a new home; choosing a gift; planning a party; volunteering
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
"""

CODE_TASKS = """
reverses a string; checks whether a word is a palindrome; counts the vowels in a text; counts how often each word
occurs; finds the largest number in a list; computes the average of a list; computes the median; sorts a list with
bubble sort; sorts a list with merge sort; sorts a list with quicksort; searches a sorted list with binary search;
merges two sorted lists; removes duplicates from a list; flattens a nested list; transposes a matrix; multiplies two
matrices; computes factorials; computes Fibonacci numbers; tests whether a number is prime; lists all primes below n;
computes the greatest common divisor; converts Celsius to Fahrenheit; converts a number to binary; converts Roman
numerals to integers; validates an email address; generates a random password; reads a CSV file and prints its rows;
writes a list to a JSON file; counts the lines of a file; finds all files with a given extension; downloads a web
page; parses a date; computes the days between two dates; prints a calendar; implements a stack; implements a queue;
implements a linked list; implements a binary tree; walks a tree in order; finds the shortest path in a graph; does a
breadth-first search; does a depth-first search; implements a hash map; implements an LRU cache; memoises a function;
measures how long a function takes; retries a function that fails; logs its arguments; splits a list into chunks;
rotates a list; finds pairs with a given sum; finds the longest common prefix; checks balanced brackets; evaluates an
arithmetic expression; plays rock, paper, scissors; plays hangman; simulates dice rolls; shuffles a deck of cards;
converts text to title case; encrypts text with a Caesar cipher; computes a checksum; compresses repeated characters;
formats a number with commas; converts seconds to hours and minutes; finds anagrams; generates all permutations;
generates subsets; solves the Tower of Hanoi; draws a triangle of stars; prints a multiplication table; checks for
leap years; models a bank account; models a shopping cart; models a library of books; reads lines from standard input;
parses command-line arguments; groups words by length
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
