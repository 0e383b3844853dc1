CREATE TABLE budget (
  id INTEGER PRIMARY KEY CHECK (id = 0),
  per_step INTEGER,
  total REAL
);
INSERT INTO budget VALUES (0, NULL, NULL);
CREATE TABLE purchases (
  seed INTEGER NOT NULL,
  step INTEGER NOT NULL,
  prompt_id INTEGER NOT NULL,
  label TEXT,           -- as JSON; NULL where nobody gave one
  who TEXT NOT NULL,
  price REAL NOT NULL,
  bought_at TEXT NOT NULL,
  standing INTEGER NOT NULL,
  PRIMARY KEY (seed, step, prompt_id)
);
CREATE TABLE questions (
  prompt_id INTEGER PRIMARY KEY,
  digest TEXT NOT NULL, -- of the prompt
  document TEXT NOT NULL,
  seed INTEGER NOT NULL,
  step INTEGER NOT NULL,
  round INTEGER NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('waiting', 'answered', 'skipped')),
  is_open INTEGER NOT NULL,
  is_taken INTEGER NOT NULL,
  label TEXT,
  who TEXT,
  page TEXT,            -- that answered it or holds it
  lease_until REAL NOT NULL,
  asked_at REAL NOT NULL,
  patience REAL,
  settled_at REAL
);
