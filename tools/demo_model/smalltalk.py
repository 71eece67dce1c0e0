"""More of what people say first, and what the model answers: a table for chat.py, beside talk.py's."""

from __future__ import annotations

from .talk import ABOUT, CAN, LIMITS

EXAMPLES = (
    "For example: What is 17 plus 25? How many cm are in 3 inches? Sort pear, apple, fig. What is the capital of France? "
    "Give me JSON with name Ada and age 36. My name is Tom."
)
SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "what can u do",
            "What do you do?",
            "What are your capabilities?",
            "What are you for?",
            "What are you made for?",
            "What is your purpose?",
            "What features do you have?",
            "What can you help with?",
            "What can you help me with?",
            "What tasks can you do?",
            "So what can you do?",
            "what all can you do",
            "How can I use you?",
            "What kinds of questions can I ask?",
            "what can you answer",
            "Tell me what you can do",
            "What else can you do?",
            "menu",
            "commands",
        ),
        (CAN,),
    ),
    (
        (
            "Give me an example",
            "Give me some examples",
            "examples?",
            "What should I try?",
            "What should I ask?",
            "Like what?",
            "For example?",
            "Such as?",
            "Show me an example",
            "Suggest something",
            "I don't know what to ask",
            "How do I start?",
        ),
        (EXAMPLES,),
    ),
    (
        (
            "Tell me something about you",
            "who r u",
            "Who is this?",
            "Are you an assistant?",
            "Are you a language model?",
            "What kind of model are you?",
            "What kind of AI are you?",
            "are you gemini",
            "Are you DeepSeek?",
            "Are you Mistral?",
        ),
        (ABOUT,),
    ),
    (
        ("Are you good at maths?", "Can you do math?", "Can you calculate?", "Do you know maths?", "can you add numbers"),
        ("Yes, small sums: try What is 17 plus 25?",),
    ),
    (
        ("Can you convert units?", "Do you know inches?", "Can you convert miles?", "Do you know the metric system?"),
        ("Yes. Try: How many cm are in 3 inches?",),
    ),
    (
        ("Can you write JSON?", "Do you know JSON?", "Can you make JSON?"),
        ("Yes. Try: Give me JSON with name Ada and age 36.",),
    ),
    (
        ("Can you call tools?", "Can you use functions?", "Do you support function calling?", "What are your tools?"),
        ("Yes, if the program that runs me declares them.",),
    ),
    (
        ("Can you tell stories?", "Do you know a story?", "Can you write a story?"),
        ("Yes, short ones. Say: Tell me a story about a fox.",),
    ),
    (
        ("Can you remember things?", "Do you remember me?", "Will you remember this?", "Do you have a memory?"),
        ("Within this conversation I can remember what you tell me, for example your name.",),
    ),
    (
        ("Are you fast?", "How fast are you?", "You are fast!", "Wow, that was quick", "that was fast"),
        ("I am small, so I am quick.",),
    ),
    (
        ("Are you online?", "Can you search the web?", "Do you have internet?", "Can you google something?"),
        ("No, I have no access to the internet.",),
    ),
    (
        ("Can you learn?", "Do you learn from me?", "Are you learning?", "Do you save my data?", "Do you spy on me?"),
        ("No: I learn nothing from our talk, and I only run on your machine.",),
    ),
    (
        (
            "How can I trust your answers?",
            "Do you know everything?",
            "Are you clever?",
            "Are you better than ChatGPT?",
            "Is GPT better than you?",
            "Do you hallucinate?",
        ),
        (LIMITS,),
    ),
    (
        (
            "I'm fine",
            "I am fine, thanks",
            "I'm good",
            "good and you?",
            "I am well",
            "fine, and you?",
            "not bad",
            "I'm great",
            "doing well",
            "I'm ok",
        ),
        ("I am glad to hear that! What can I do for you?",),
    ),
    (
        (
            "thank u",
            "thanks!",
            "Thank you so much!",
            "tysm",
            "thanks, that helps",
            "That helped",
            "thanks man",
            "ok thanks",
            "perfect, thank you",
            "Thanks, bye",
            "appreciate it",
            "I appreciate it",
        ),
        ("You are welcome!", "You are welcome! Is there anything else?"),
    ),
    (
        (
            "Good job",
            "Well done",
            "That is right",
            "correct",
            "You are right",
            "You are smart",
            "good bot",
            "impressive",
            "not bad for a small model",
            "You are cool",
            "I like you",
        ),
        ("Thank you! What else can I do for you?",),
    ),
    (
        ("Good afternoon", "Good afternoon!", "good day to you"),
        ("Good afternoon! How can I help you?",),
    ),
    (
        ("Nice to meet you", "Pleased to meet you", "Nice talking to you", "good to see you"),
        ("Nice to meet you, too! What can I do for you?",),
    ),
    (
        ("What are you doing?", "what's new?", "wyd", "What are you thinking about?", "Are you busy?"),
        ("I wait for your next question.",),
    ),
    (
        ("Let's talk", "Can we talk?", "Let's chat", "Talk to me", "chat with me", "Say something", "Tell me something"),
        ("Gladly. Tell me something about you, or ask me a small question.",),
    ),
    (
        ("Can I ask you something?", "I have a question", "May I ask a question?", "question"),
        ("Of course. What is your question?",),
    ),
    (
        ("Wait", "one moment", "hold on", "just a second", "brb", "let me think"),
        ("Take your time.",),
    ),
    (
        ("asdf", "qwerty", "lkjsdf", "...", "aaa", "blah blah", "foo", "asdfghjkl", "."),
        ("I do not understand that. Please ask me in other words.",),
    ),
    (
        ("Say hello", "Say hi", "Say hello to me", "Greet me"),
        ("Hello!",),
    ),
    (
        ("Do you want to play a game?", "Let's play", "Can we play chess?", "play a game with me"),
        ("I know no games, but I can tell you a riddle or give you a joke.",),
    ),
    (
        ("What is love?", "What is happiness?", "What is art?", "What is truth?", "what is life"),
        ("That is a big question, and I am a small model. People see it in different ways.",),
    ),
)
