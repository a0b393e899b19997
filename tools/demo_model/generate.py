#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Documents the demo model is trained on: stories, chats, and facts to recall much later.

A document is a list of segments. A segment is either the name of a control token (`<|user|>`,
`</s>`, ...) or a piece of text. The beginning-of-sequence token is implied.

Three private-use characters mark recall; the tokenizer strips them and reports where they were:
  FACT + i     just after the value of fact i was stated
  ASK + i      just before an answer that only fact i determines
  DONE         just after that answer

    python3 generate.py --seed 1 --count 5 --longest 512      # look at some documents
"""
import argparse
import random

import stories
from stories import COLOURS, FOODS, NAMES, PLACES, PRONOUN, TOYS, TRAITS, ANIMALS, an, cap

SYSTEM, USER, ASSISTANT, END, EOS = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "</s>"
FACT, ASK, DONE = 0xE000, 0xE100, "\ue200"

KEPT = "key coin letter map button shell feather spoon candle stone pen ribbon".split()
HOLDERS = "box bag basket jar chest pot drawer".split()
CLOTHES = "hat coat scarf".split()
PETS = "cat dog pony rabbit goat duck".split()
PET_NAMES = ("Biscuit Pepper Shadow Snowy Bubbles Button Ginger Misty Patch Star Toffee Velvet "
             "Cloudy Sparky Nutmeg Pebble").split()
DIGITS = "one two three four five six seven eight nine".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
JOBS = "baker farmer teacher doctor sailor painter singer gardener pilot cook writer king".split()


class Fact:
    """One thing to remember about a person. `value` is what has to be recalled."""

    def __init__(self, index, rng, person, sort, used):
        self.i, self.rng, self.p, self.sort = index, rng, person, sort
        self.he, self.him, self.his = PRONOUN[person]
        if sort == "keep":
            self.thing = rng.choice([k for k in KEPT if k not in used] or KEPT)
            used.add(self.thing)
            self.value = f"{rng.choice(COLOURS)} {rng.choice(HOLDERS)}"
        elif sort == "wear":
            self.thing = rng.choice(CLOTHES)
            self.value = rng.choice(COLOURS)
        elif sort == "pet":
            self.thing = rng.choice(PETS)
            self.value = rng.choice([n for n in PET_NAMES if n not in used] or PET_NAMES)
            used.add(self.value)
        elif sort == "food":
            self.value = rng.choice(FOODS)
        elif sort == "code":
            self.value = " ".join(rng.choice(DIGITS) for _ in range(3))
        elif sort == "day":
            self.value = rng.choice(DAYS)
        elif sort == "home":
            self.value = rng.choice(PLACES)
        elif sort == "job":
            self.value = rng.choice(JOBS)

    def say(self):
        p, v = self.p, self.value + chr(FACT + self.i)
        t = getattr(self, "thing", "")
        he, his = self.he, self.his
        return self.rng.choice({
            "keep": (f"{p} kept {an(t)} in the {v}.", f"The {t} of {p} was in the {v}.",
                     f"{p} put the {t} in the {v}."),
            "wear": (f"{p} wore {an(v)} {t}.", f"{p} had {an(v)} {t}.", f"{p}'s {t} was {v}."),
            "pet": (f"{p} had a {t} called {v}.", f"{p} had a {t} named {v}.",
                    f"The name of {p}'s {t} was {v}."),
            "food": (f"{p} liked {v} best.", f"The food {p} liked best was {v}."),
            "code": (f"The code of {p}'s door was {v}.", f"{p} opened {his} door with the code {v}."),
            "day": (f"{p} went to the market every {v}.", f"Market day for {p} was {v}."),
            "home": (f"{p} lived near the {v}.", f"{p} had a house near the {v}."),
            "job": (f"{p} wanted to be a {v}.", f"\"I want to be a {v},\" said {p}."),
        }[self.sort])

    @property
    def answer(self):
        return chr(ASK + self.i) + self.value + DONE

    def use(self):
        """A sentence of the story that needs the fact."""
        p, v = self.p, self.answer
        t = getattr(self, "thing", "")
        he, his = self.he, self.his
        return self.rng.choice({
            "keep": (f"When {p} needed the {t}, {he} went to the {v}.",
                     f"{p} looked for the {t} and opened the {v}.",
                     f"{p} took the {t} out of the {v}."),
            "wear": (f"{p} came by, and everyone knew {self.him} by the {t}, which was {v}.",
                     f"It was cold, so {p} put on {his} {t}, the one that was {v}."),
            "pet": (f"The {t} of {p} came along. \"Be good, {v},\" said {p}.",
                    f"{p} went home to feed the {t} and called {v}."),
            "food": (f"As always, {p} asked for {v}.", f"For lunch {p} had {v}."),
            "code": (f"{p} came to the door and said the code, {v}.",
                     f"{p} did not forget the code, which was {v}."),
            "day": (f"{p} could not come on {v}.",
                    f"\"I will see you at the market on {v},\" said {p}."),
            "home": (f"In the evening {p} went home to the {v}.",),
            "job": (f"{p} still dreamed of being a {v}.",),
        }[self.sort])

    def question(self):
        p = self.p
        t = getattr(self, "thing", "")
        return self.rng.choice({
            "keep": (f"Where did {p} keep the {t}?", f"Where was {p}'s {t}?"),
            "wear": (f"What colour was {p}'s {t}?", f"What colour was the {t} of {p}?"),
            "pet": (f"What was the name of {p}'s {t}?", f"What was {p}'s {t} called?"),
            "food": (f"What did {p} like best?", f"Which food did {p} like best?"),
            "code": (f"What was the code of {p}'s door?", f"Which code did {p} use?"),
            "day": (f"On which day did {p} go to the market?", f"When did {p} go to the market?"),
            "home": (f"Where did {p} live?", f"Where was {p}'s house?"),
            "job": (f"What did {p} want to be?",),
        }[self.sort])

    def reply(self, short):
        p, v = self.p, self.answer
        t = getattr(self, "thing", "")
        if short:
            return {"keep": f"in the {v}.", "home": f"near the {v}.", "job": f"a {v}.",
                    "day": f"on {v}."}.get(self.sort, f"{v}.")
        return {"keep": f"{p} kept the {t} in the {v}.", "wear": f"{p}'s {t} was {v}.",
                "pet": f"{p}'s {t} was called {v}.", "food": f"{p} liked {v} best.",
                "code": f"The code of {p}'s door was {v}.",
                "day": f"{p} went to the market on {v}.", "home": f"{p} lived near the {v}.",
                "job": f"{p} wanted to be a {v}."}[self.sort]


SORTS = ("keep", "wear", "pet", "food", "code", "day", "home", "job")


def make_facts(rng, count):
    """Mostly of different sorts, so that few facts compete; otherwise of any."""
    people = rng.sample(NAMES, max(2, min(20, (count + 1) // 2 + rng.randrange(2))))
    used = set()
    if count <= len(SORTS) and rng.random() < 0.6:
        pairs = [(rng.choice(people), s) for s in rng.sample(SORTS, count)]
    else:
        pairs = rng.sample([(p, s) for p in people for s in SORTS], count)
    return people, [Fact(i, rng, p, s, used) for i, (p, s) in enumerate(pairs)]


def words(text):
    return text.count(" ") + 1


def story_text(rng, story):
    """A story as text, now and then in two paragraphs."""
    if rng.random() < 0.15:
        cut = rng.randrange(2, len(story.lines) - 2)
        return " ".join(story.lines[:cut]) + "\n" + " ".join(story.lines[cut:])
    return story.text


def plain(rng):
    story = stories.tell(rng)
    text = story_text(rng, story)
    if rng.random() < 0.3:
        for questions, answer in rng.sample(story.asks, min(len(story.asks), rng.randrange(1, 4))):
            text += f"\nQuestion: {rng.choice(questions)}\nAnswer: {answer}"
    return [text, EOS]


def several(rng, target):
    """Stories in one stream, one a line, as in a file of text."""
    out, size = [], 0
    while size < target:
        out.append(stories.tell(rng).text)
        size += words(out[-1]) * 1.25
    return ["\n".join(out), EOS]


def recall(rng, target, exercise=False):
    """Facts first, then ordinary stories, and sentences that need the facts; about `target` tokens."""
    if exercise and rng.random() < 0.15:
        return dense(rng, target)
    budget = target / 1.27
    count = rng.randrange(3, 8)
    people, facts = make_facts(rng, count)
    said = [f.say() for f in facts]
    text = " ".join(said)
    often = rng.sample(facts, (len(facts) + 1) // 2)       # the others are asked for at the end only
    queue = []
    tail = rng.sample(facts, min(len(facts), max(2, int(count * rng.uniform(0.6, 1.1)))))
    budget -= words(text) + len(tail) * 11
    style = rng.random()
    while budget > 20:
        lines = stories.tell(rng, avoid=people).lines
        if budget < 100:
            first = rng.randrange(max(1, len(lines) - 4))
            lines = lines[first:first + max(2, int(budget / 9))]
        for line in lines:
            if budget <= 0:
                break
            text += " " + line
            budget -= words(line)
            if rng.random() < 0.18:
                if not queue:
                    queue = rng.sample(often, len(often))
                line = queue.pop().use()
                text += " " + line
                budget -= words(line)
    if style < 0.75:
        for f in tail:
            text += f"\nQuestion: {f.question()}\nAnswer: {f.reply(short=rng.random() < 0.7)}"
    else:
        text += " " + " ".join(f.use() for f in tail)
    return [text, EOS]


def dense(rng, target):
    """Nothing but facts and questions about them: the quickest way to learn to look things up."""
    target = min(target, 1024) * rng.uniform(0.3, 1)
    count = max(3, int(target / 27))
    _, facts = make_facts(rng, min(count, 60))
    text = " ".join(f.say() for f in facts)
    for f in rng.sample(facts, len(facts)):
        if rng.random() < 0.6:
            text += f"\nQuestion: {f.question()}\nAnswer: {f.reply(short=rng.random() < 0.7)}"
        else:
            text += " " + f.use()
    return [text, EOS]


def chant(rng, target):
    """Random words said again, in order or in pairs: exercises for looking back, as a rhyme is for
    children. They bring copying and looking up about early."""
    target = min(target, 512) * rng.uniform(0.2, 1)
    values = COLOURS + FOODS + PLACES + DAYS + JOBS + DIGITS + KEPT + PET_NAMES + ANIMALS + HOLDERS
    if rng.random() < 0.4:
        once = [rng.choice(values + NAMES) for _ in range(rng.randrange(4, max(6, int(target / 3))))]
        sep = rng.choice((" ", ", "))
        return [". ".join([sep.join(once)] * max(2, int(target / len(once) / (1.3 if sep == " " else 2.3)))) + ".", EOS]
    sort = rng.choice((COLOURS, FOODS, PLACES, DAYS, JOBS, DIGITS, KEPT, PET_NAMES, ANIMALS, HOLDERS, values))
    keys = rng.sample(NAMES, min(len(NAMES), rng.randrange(3, max(5, min(24, int(target / 9))))))
    link, sep = rng.choice((" ", ": ", " was ", " had ", " and ")), rng.choice((", ", ". "))
    value = {k: rng.choice(sort) for k in keys}
    said = [k + link + value[k] + chr(FACT + i) for i, k in enumerate(keys)]
    size = len(said)
    while size * (4.3 if link != " " else 3.3) < target:
        for i in rng.sample(range(len(keys)), len(keys)):
            said.append(keys[i] + link + chr(ASK + i) + value[keys[i]] + DONE)
            size += 1
    return [sep.join(said) + ".", EOS]


# ---- chat ----

SYSTEMS = ("You are a helpful assistant.", "You are a storyteller.", "You are a kind storyteller.",
           "You tell short stories.", "You are a friendly assistant who tells stories.",
           "Be brief.", "Answer in simple words.", "You are a helpful assistant that tells stories for children.")
HELLO = ("Hello!", "Hello", "Hi", "Hi!", "Hi there!", "Good morning!", "Hello, how are you?", "Hey", "hello", "hi")
HELLO_BACK = ("Hello! Would you like to hear a story?", "Hello! I can tell you a story. What should it be about?",
              "Hello! It is good to see you. Shall I tell you a story?")
TALK = ((("How are you?", "How are you today?"), ("I am well, thank you. Would you like to hear a story?",)),
        (("Who are you?", "What are you?", "What is your name?"),
         ("I am a very small language model. I tell short stories.",)),
        (("What can you do?", "Help", "Can you help me?", "What do you know?"),
         ("I can tell short stories, answer questions about them, and remember what you tell me.",)),
        (("Thank you!", "Thanks", "Thank you for the story.", "That was nice.", "I liked it.", "Great story!"),
         ("I am glad that you liked it.", "You are welcome. Would you like another story?")),
        (("Goodbye!", "Good night!", "Bye"), ("Goodbye! Come back soon for another story.", "Good night! Sleep well.")))
UNKNOWN = ("What is the capital of France?", "Write a program in Python.", "How do I cook rice?", "What is 2 + 2?",
           "Who won the game yesterday?", "Explain gravity to me.", "What time is it?", "Translate this into German.",
           "What is the weather today?", "Write a poem.", "How far is the moon?", "What is a computer?",
           "Solve x + 3 = 7.", "Give me a recipe.", "What is the best phone?", "Who is the president?",
           "Why is the sky blue?", "What does this error mean?", "Count to 100.", "Write an email to my boss.",
           "What is a GPU?", "How does a car work?", "List five countries.", "Summarize the news.", "Tell me a joke.",
           "What is the meaning of life?", "How old are you?", "What is machine learning?", "Play some music.",
           "Which film should I watch?", "What is KV cache?", "Fix my code.", "test", "asdf", "ok", "???", "1234")
REFUSE = ("I do not know much about that, but I can tell you a story. Would you like one about {a}?",
          "I only know stories. Shall I tell you one about {a}?",
          "I am a small model and I do not know that. I can tell you a story about {a}.")


def loosen(rng, text):
    """Users do not always type full sentences."""
    k = rng.random()
    if k < 0.08:
        return text.lower()
    if k < 0.16 and text[-1] in ".?!":
        return text[:-1]
    return text


def request(rng):
    """A request for a story, and the story that honours it."""
    kw = {}
    k = rng.random()
    if k < 0.12:
        subject = ""
    elif k < 0.62:
        kw["kind"] = rng.choice(ANIMALS + ["girl", "boy"] * 2)
        subject = kw["kind"]
        if kw["kind"] in ("girl", "boy"):
            kw["name"] = rng.choice(stories.GIRLS if subject == "girl" else stories.BOYS)
        if rng.random() < 0.3:
            kw["trait"] = rng.choice(TRAITS)
            subject = kw["trait"] + " " + subject
        subject = an(subject)
        if rng.random() < 0.35:
            kw.setdefault("name", rng.choice(NAMES))
            subject += rng.choice((" called ", " named ")) + kw["name"]
        if rng.random() < 0.12:
            kw["plot"] = rng.choice(list(stories.PLOTS))
            kw["toy"], kw["food"] = rng.choice(TOYS), rng.choice(FOODS)
            subject += " and " + rng.choice(stories.PLOTS[kw["plot"]][1]).format(**kw)
    elif k < 0.85:
        kw["plot"] = rng.choice(list(stories.PLOTS))
        kw["toy"], kw["food"] = rng.choice(TOYS), rng.choice(FOODS)
        subject = rng.choice(stories.PLOTS[kw["plot"]][1]).format(**kw)
    elif k < 0.93:
        kw["name"] = rng.choice(NAMES)
        subject = kw["name"]
    else:
        kw["place"] = rng.choice(PLACES)
        subject = "the " + kw["place"]
    story = stories.tell(rng, **kw)
    if not subject:
        return rng.choice(("Tell me a story.", "Please tell me a story.", "Once upon a time", "Once upon a time,",
                           "A story, please.", "Can you tell me a story?", "Tell me a short story.",
                           "I would like to hear a story.", "Story", "Tell a story.", "Write a story.",
                           "Write a short story.", "Yes, please.", "Yes")), story
    ask = rng.choice(("Tell me a story about {}.", "Tell me a story about {}.", "Tell me a story about {}.",
                      "Please tell me a story about {}.", "Can you tell me a story about {}?",
                      "Write a story about {}.", "Write a short story about {}.", "I would like a story about {}.",
                      "Tell me a short story about {}.", "A story about {}, please.", "Do you know a story about {}?",
                      "Tell me about {}."))
    if kw.get("kind") and rng.random() < 0.05:
        ask = "Once upon a time, there was {}"
    return loosen(rng, ask.format(subject)), story


def again(rng):
    story = stories.tell(rng)
    return rng.choice(("Another one, please.", "Tell me another story.", "One more, please.", "Another story, please.",
                       "Again!", "More")), story


def mine(rng, index):
    """Something the user says about himself: (statement, question, answer)."""
    k = rng.randrange(6)
    mark, ask = chr(FACT + index), chr(ASK + index)
    if k == 0:
        v = rng.choice(NAMES)
        return f"My name is {v}{mark}.", rng.choice(("What is my name?", "Who am I?", "Do you remember my name?")), f"Your name is {ask}{v}{DONE}."
    if k == 1:
        v = rng.choice(COLOURS)
        return f"My favourite colour is {v}{mark}.", rng.choice(("What is my favourite colour?", "Which colour do I like?")), f"Your favourite colour is {ask}{v}{DONE}."
    if k == 2:
        t, v = rng.choice(PETS), rng.choice(PET_NAMES)
        return f"I have a {t} called {v}{mark}.", rng.choice((f"What is my {t} called?", f"What is the name of my {t}?")), f"Your {t} is called {ask}{v}{DONE}."
    if k == 3:
        v = rng.choice(FOODS)
        return f"My favourite food is {v}{mark}.", rng.choice(("What is my favourite food?", "What do I like to eat?")), f"Your favourite food is {ask}{v}{DONE}."
    if k == 4:
        v = " ".join(rng.choice(DIGITS) for _ in range(3))
        return f"The code is {v}{mark}.", rng.choice(("What is the code?", "Do you remember the code?")), f"The code is {ask}{v}{DONE}."
    v = rng.choice(PLACES)
    return f"I live near the {v}{mark}.", rng.choice(("Where do I live?", "Do you know where I live?")), f"You live near the {ask}{v}{DONE}."


def chat(rng, target):
    out, size = [], 0

    def turn(user, assistant):
        nonlocal size
        out.extend((USER, user, END, ASSISTANT, assistant, END))
        size += words(user) * 1.4 + words(assistant) * 1.25 + 4

    if rng.random() < 0.25:
        out += [SYSTEM, rng.choice(SYSTEMS), END]
    later = []        # questions about early facts
    kind = rng.random()
    if kind < 0.3:
        seen, told = set(), []
        for i in range(rng.randrange(1, 4)):
            statement, question, answer = mine(rng, i)
            key = answer.split(chr(ASK + i))[0]
            if key in seen:
                continue
            seen.add(key)
            told.append(statement)
            later.append((question, answer))
        hello = rng.choice(("", "", "Hello! ", "Hi. "))
        turn(hello + " ".join(told), rng.choice(("Nice to meet you. I will remember that.", "Thank you for telling me.",
                                                 "I will remember that. Would you like to hear a story?")))
    elif kind < 0.5:
        count = rng.randrange(2, 6)
        _, facts = make_facts(rng, count)
        later = [(f.question(), f.reply(short=False)) for f in facts]
        turn(rng.choice(("Remember this. ", "Please remember: ", "Here are some facts. ")) + " ".join(f.say() for f in facts),
             rng.choice(("I will remember that.", "Thank you. I will remember it.")))
    elif kind < 0.6:
        turn(rng.choice(HELLO), rng.choice(HELLO_BACK))
    rng.shuffle(later)
    while True:
        k = rng.random()
        if later and k < 0.35:
            question, answer = later.pop()
            turn(loosen(rng, question), answer)
        elif k < 0.12:
            users, answers = rng.choice(TALK)
            turn(loosen(rng, rng.choice(users)), rng.choice(answers))
        elif k < 0.18:
            kind = rng.choice(ANIMALS)
            turn(loosen(rng, rng.choice(UNKNOWN)), rng.choice(REFUSE).format(a=an(kind)))
            if rng.random() < 0.5:
                turn(rng.choice(("Yes, please.", "Yes", "Please do.", "Yes!", "OK")),
                     stories.tell(rng, kind=kind).text)
        elif k < 0.21 and not later and kind_free(out):
            _, question, _ = mine(rng, 0)
            turn(loosen(rng, question), "I do not know. You have not told me yet.")
        else:
            user, story = again(rng) if size > 100 and rng.random() < 0.2 else request(rng)
            turn(user, story_text(rng, story))
            asks = rng.sample(story.asks, min(len(story.asks), rng.choice((0, 0, 1, 1, 2, 3))))
            for questions, answer in asks:
                turn(loosen(rng, rng.choice(questions)), answer)
        if size > target * 0.75:
            break
    for question, answer in later[:max(0, int((target - size) / 22)) + 1]:
        turn(loosen(rng, question), answer)
    if rng.random() < 0.5:
        out.append(EOS)
    return out


def kind_free(out):
    """Nothing was told about the user in this chat."""
    return not any("My " in s or "I have" in s or "I live" in s or "code is" in s or "Remember" in s
                   or "remember" in s or "facts" in s for s in out)


def document(rng, longest, mix=(0.30, 0.05, 0.35, 0.25, 0.03, 0.02)):
    """One document of at most about `longest` tokens. `mix`: plain, several, recall, chat, dense, chant."""
    k = rng.random()
    if k >= 1 - mix[5]:
        return chant(rng, longest)
    if k >= 1 - mix[5] - mix[4]:
        return dense(rng, longest)
    if k < mix[0]:
        return plain(rng)
    if k < mix[0] + mix[1]:
        return several(rng, longest)
    target = longest * (1 - rng.random() ** 2 * 0.8)
    if k < mix[0] + mix[1] + mix[2]:
        return recall(rng, max(96, target * 0.95), exercise=True)
    return chat(rng, target * 0.9)


def clean(text):
    return "".join(c for c in text if not 0xE000 <= ord(c) <= 0xE200)


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--count", type=int, default=5)
    ap.add_argument("--longest", type=int, default=512)
    args = ap.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.count):
        print(clean("".join(document(rng, args.longest))), "\n----")
