//! Every statement says that its operators, functions and types are those of pg_catalog.
//!
//! A reading of the sources, so that it holds for statements that no test runs, and for those that are still to be
//! written: all `.sql` files, and all texts in the code that begin like a statement. It knows as much of SQL as these
//! need.

use std::fs;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// Also a parameter, a number, and a name with its schema.
    Word(String),
    Text,
    /// `operator(pg_catalog.…)`.
    Qualified,
    Operator(String),
    Sign(char),
}

/// Words in front of a bracket that are no functions.
const GRAMMAR: [&str; 35] = [
    "all",
    "and",
    "any",
    "array",
    "as",
    "by",
    "case",
    "coalesce",
    "conflict",
    "else",
    "exists",
    "extract",
    "filter",
    "from",
    "greatest",
    "having",
    "insert",
    "into",
    "lateral",
    "least",
    "limit",
    "materialized",
    "not",
    "on",
    "or",
    "over",
    "returning",
    "rows",
    "select",
    "set",
    "then",
    "union",
    "values",
    "when",
    "where",
];

/// Types that are words of the grammar, and so always those of pg_catalog.
const TYPES: [&str; 8] =
    ["bigint", "integer", "smallint", "boolean", "numeric", "interval", "double", "timestamp"];

fn tokens(sql: &str) -> Vec<Token> {
    let chars: Vec<char> = sql.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    let run = |from: usize, of: &dyn Fn(char) -> bool| {
        chars[from..].iter().take_while(|char| of(**char)).count()
    };
    while at < chars.len() {
        let char = chars[at];
        if chars[at..].starts_with(&['-', '-']) {
            at += run(at, &|char| char != '\n');
        } else if char == '\'' {
            at += 1 + run(at + 1, &|char| char != '\'') + 1;
            tokens.push(Token::Text);
        } else if char.is_alphanumeric() || "_${}.".contains(char) {
            let length = run(at, &|char| char.is_alphanumeric() || "_${}.".contains(char));
            let word: String = chars[at..at + length].iter().collect();
            at += length;
            if word == "operator" && chars.get(at) == Some(&'(') {
                let inner = run(at, &|char| char != ')') + 1;
                let name: String = chars[at..at + inner].iter().collect();
                assert!(name.starts_with("(pg_catalog."), "operator{name}");
                at += inner;
                tokens.push(Token::Qualified);
            } else {
                tokens.push(Token::Word(word.to_lowercase()));
            }
        } else if "+-*/<>=~!@#%^&|?:".contains(char) {
            let length = run(at, &|char| "+-*/<>=~!@#%^&|?:".contains(char));
            tokens.push(Token::Operator(chars[at..at + length].iter().collect()));
            at += length;
        } else {
            if !char.is_whitespace() {
                tokens.push(Token::Sign(char));
            }
            at += 1;
        }
    }
    tokens
}

/// Whether the call that begins here has several arguments.
fn has_several(behind: &[Token]) -> bool {
    let mut depth = 0;
    for token in behind {
        match token {
            Token::Sign('(' | '[') => depth += 1,
            Token::Sign(')' | ']') => depth -= 1,
            Token::Sign(',') if depth == 1 => return true,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    false
}

/// What a search_path may turn into something else.
fn faults(sql: &str) -> Vec<String> {
    let tokens = tokens(sql);
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => word.as_str(),
        _ => "",
    };
    let before = |at: usize, back: usize| at.checked_sub(back).and_then(|at| tokens.get(at));
    // Names that the statement itself gives.
    let own: Vec<&str> = (0..tokens.len())
        .filter(|&at| {
            let follows = |back| before(at, back).is_some_and(|token| *token == Token::Sign(','));
            let with = at > 0 && (["with", "recursive"].contains(&word(at - 1)) || follows(1));
            with && word(at + 1) == "as"
        })
        .map(word)
        .collect();
    let mut faults = Vec::new();
    let (mut depth, mut assigns) = (0, None);
    for (at, token) in tokens.iter().enumerate() {
        let previous = before(at, 1);
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => {
                depth -= 1;
                assigns = assigns.filter(|set| *set <= depth);
            }
            Token::Sign(';') => assigns = None,
            Token::Operator(operator) => match operator.as_str() {
                "::" => {
                    let name = word(at + 1);
                    if !name.starts_with("pg_catalog.") && !TYPES.contains(&name) {
                        faults.push(format!("the type {name}"));
                    }
                }
                "*" => {
                    let all = match previous {
                        Some(Token::Sign('(' | ',')) => true,
                        Some(Token::Word(word)) => word == "select" || word.ends_with('.'),
                        _ => false,
                    };
                    if !all {
                        faults.push("the operator *".to_owned());
                    }
                }
                "=" => {
                    let first = match before(at, 2) {
                        Some(Token::Sign(',')) => true,
                        Some(Token::Word(word)) => word == "set" || word == "local",
                        _ => false,
                    };
                    if !(assigns == Some(depth)
                        && first
                        && matches!(previous, Some(Token::Word(_))))
                    {
                        faults.push("the operator =".to_owned());
                    }
                }
                // It names an argument, and can be no operator.
                "=>" => {}
                _ => faults.push(format!("the operator {operator}")),
            },
            Token::Word(name) => {
                let name = name.as_str();
                let last = if at == 0 { "" } else { word(at - 1) };
                match name {
                    "set" => assigns = Some(depth),
                    "where" | "from" | "returning" if assigns == Some(depth) => assigns = None,
                    "in" | "nullif" | "like" | "ilike" | "similar" | "between" | "cast" => {
                        faults.push(format!(
                            "the word {name}, which means an operator of any schema"
                        ));
                    }
                    "distinct" if last == "is" || last == "not" => {
                        faults
                            .push("is distinct from, which means an operator of any schema".into());
                    }
                    _ => {}
                }
                let bracket = tokens.get(at + 1) == Some(&Token::Sign('('));
                let is_call = bracket
                    && !name.contains('.')
                    && !GRAMMAR.contains(&name)
                    && !["as", "into"].contains(&last)
                    && !own.contains(&name)
                    && !name.starts_with('{');
                // Of several arguments it is syntax, and takes no schema.
                if is_call && !(name == "unnest" && has_several(&tokens[at + 1..])) {
                    faults.push(format!("the function {name}"));
                }
                let of_extract = || {
                    let behind = tokens[..at].iter().rev().take(4);
                    behind.into_iter().any(|token| *token == Token::Word("extract".into()))
                };
                let reads = ["from", "join", "into"].contains(&last)
                    && !(at >= 2 && word(at - 2) == "distinct")
                    && !of_extract();
                if reads
                    && !name.contains('.')
                    && !GRAMMAR.contains(&name)
                    && !own.contains(&name)
                    && name != "unnest"
                {
                    faults.push(format!("the table {name}"));
                }
            }
            Token::Text | Token::Qualified | Token::Sign(_) => {}
        }
    }
    faults
}

/// The texts of a Rust source.
fn literals(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n").replace("'\"'", "' '");
    let mut texts = Vec::new();
    let mut chars = code.chars().peekable();
    while let Some(char) = chars.next() {
        if char != '"' {
            continue;
        }
        let mut text = String::new();
        while let Some(char) = chars.next().filter(|char| *char != '"') {
            match (char, chars.peek()) {
                ('\\', Some('\n')) => while chars.next_if(|char| char.is_whitespace()).is_some() {},
                ('\\', _) => text.extend(chars.next()),
                _ => text.push(char),
            }
        }
        texts.push(text);
    }
    texts
}

fn is_statement(text: &str) -> bool {
    let verbs = ["select ", "insert into ", "update ", "delete from ", "do $"];
    verbs.iter().any(|verb| text.starts_with(verb))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn every_statement_of_a_service_says_whose_names_it_means() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(&root.join("src"), &mut found);
    files(&root.join("../inbox/src"), &mut found);
    files(&root.join("../outbox/src"), &mut found);
    files(&root.join("../saga/src"), &mut found);
    found.extend(
        ["of_inbox.rs", "inbox_find.sql"]
            .map(|name| root.join("../store/src/dead_letters").join(name)),
    );
    let (mut statements, mut said) = (0, Vec::new());
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        let texts = match path.extension().and_then(|extension| extension.to_str()) {
            Some("sql") => vec![text],
            Some("rs") => literals(&text).into_iter().filter(|text| is_statement(text)).collect(),
            _ => continue,
        };
        for text in texts {
            statements += 1;
            let file = path.file_name().unwrap().display();
            said.extend(
                faults(&text).into_iter().map(|fault| format!("{file}: {fault} in: {text}")),
            );
        }
    }
    assert!(statements > 50, "only {statements} statements were found");
    assert!(said.is_empty(), "{}", said.join("\n\n"));
}

#[test]
fn what_may_mean_another_schemas_name_is_found() {
    for (sql, fault) in [
        ("select a from s.t where a = $1", "the operator ="),
        (
            "update s.t set a = 1, b = a where c operator(pg_catalog.=) 1 and a = b",
            "the operator =",
        ),
        ("select $1 * 2", "the operator *"),
        ("select a || b from s.t", "the operator ||"),
        ("select now()", "the function now"),
        ("select unnest($1)", "the function unnest"),
        ("select '1'::text", "the type text"),
        ("select 1 from s.t where a in (1, 2)", "the word in"),
        ("select 1 from s.t where a is not distinct from b", "is distinct from"),
        ("select nullif(a, b) from s.t", "the word nullif"),
        ("select name from pg_class", "the table pg_class"),
    ] {
        let found = faults(sql);
        assert!(found.iter().any(|found| found.starts_with(fault)), "{sql}: {found:?}");
    }
    for sql in [
        "with one as (select 1) select * from one, s.t as t (a, b) where t.a operator(pg_catalog.=) any ($1)",
        "insert into s.t as u (a) values ($1) on conflict (a) do update set a = excluded.a, b = 1 where u.c returning u.*",
        "select a::bigint, b::pg_catalog.text, pg_catalog.count(*) from unnest($1, $2) as x -- a = b",
        "select extract(epoch from a) from s.t",
        "select pg_catalog.make_interval(secs => $1)",
    ] {
        assert_eq!(faults(sql), Vec::<String>::new(), "{sql}");
    }
}
