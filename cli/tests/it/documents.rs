//! What operators are handed must not rot: the metrics named in documents, rules and dashboard are there, and
//! the commands, flags and variables in manifests are the program's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pillarbox_relay::metrics::{ALL, Kind};
use yaml_rust2::{Yaml, YamlLoader};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Yaml {
    let mut documents =
        YamlLoader::load_from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(documents.len(), 1, "{path}");
    documents.remove(0)
}

/// What begins like a metric, and is none.
const PREFIXES: [&str; 3] = ["pillarbox_relay", "pillarbox_inbox_", "pillarbox_saga_"];

/// Words of the text that look like a name of ours.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("pillarbox_") && !PREFIXES.contains(word))
        .map(str::to_owned)
        .collect()
}

/// The metrics of the relay, of consumers, of commands over HTTP, of sagas, and of the trail.
fn known() -> BTreeSet<String> {
    use pillarbox_consumer::metrics as consumer;
    use pillarbox_inbox::http::metrics as http;
    let relays = ALL.iter().map(|metric| (metric.name, metric.kind == Kind::Histogram));
    let consumers = consumer::ALL.iter();
    let consumers = consumers.map(|metric| (metric.name, metric.kind == consumer::Kind::Histogram));
    let mut names = BTreeSet::new();
    let commands = [(http::REQUESTS, false), (http::DURATION, true)];
    let sagas = pillarbox_saga::metrics::ALL.iter().map(|metric| (metric.name, false));
    let trail = pillarbox_trail::metrics::ALL.iter().map(|metric| (metric.name, false));
    for (name, is_histogram) in relays.chain(consumers).chain(commands).chain(sagas).chain(trail) {
        names.insert(name.to_owned());
        if is_histogram {
            names.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        }
    }
    names
}

#[test]
fn every_metric_that_is_named_is_one_that_there_is() {
    for path in [
        "docs/operations.md",
        "docs/deployment.md",
        "docs/guides/autoscaling.md",
        "docs/guides/production.md",
        "docs/guides/seeing.md",
        "ops/prometheus/alerts.yml",
        "ops/prometheus/alerts_test.yml",
        "ops/grafana/pillarbox.json",
    ] {
        let unknown: Vec<_> = metrics_in(&read(path)).difference(&known()).cloned().collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}");
    }
}

#[test]
fn every_metric_is_in_the_documents_and_the_dashboard() {
    let (text, dashboard) = (read("docs/operations.md"), read("ops/grafana/pillarbox.json"));
    let relay = ALL.iter().map(|metric| metric.name);
    for name in relay.chain(pillarbox_trail::metrics::ALL.iter().map(|metric| metric.name)) {
        assert!(text.contains(&format!("| `{name}` |")), "{name}");
        assert!(dashboard.contains(name), "{name}");
    }
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
}

#[test]
fn every_metric_that_an_alert_watches_is_explained_and_drawn() {
    let (text, dashboard) = (read("docs/operations.md"), read("ops/grafana/pillarbox.json"));
    let watched = metrics_in(&read("ops/prometheus/alerts.yml"));
    assert!(watched.contains(pillarbox_consumer::metrics::REMOVED.name), "{watched:?}");
    for metric in watched {
        assert!(text.contains(&format!("| `{metric}` |")), "{metric} is not in docs/operations.md");
        assert!(dashboard.contains(&metric), "{metric} is not in the dashboard");
    }
}

#[test]
fn every_line_of_the_log_that_is_explained_is_one_that_is_written() {
    let text = read("docs/operations.md");
    let log = text.split("## The log").nth(1).unwrap().split("## Runbook").next().unwrap();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .collect();
    assert!(lines.len() > 10, "{lines:?}");
    let mut source = String::new();
    for folder in ["relay/src", "cli/src"] {
        gather(&root().join(folder), &mut source);
    }
    for line in lines {
        assert!(source.contains(&format!("\"{line}\"")), "nobody writes {line:?}");
    }
}

fn gather(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            into.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_runbook_that_an_alert_names_is_there_and_promtool_agrees_with_the_rules() {
    let text = read("docs/operations.md");
    let anchors: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    let rules = yaml("ops/prometheus/alerts.yml");
    let rules = rules["groups"][0]["rules"].as_vec().unwrap();
    assert!(rules.len() >= 5);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(text.contains(name), "{name} is not in the runbook");
        let runbook = rule["annotations"]["runbook"].as_str().unwrap();
        let anchor = runbook.strip_prefix("docs/operations.md#").unwrap();
        assert!(anchors.contains(anchor), "{runbook}: {anchors:?}");
    }
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(root().join("ops/prometheus"))
            .output();
        match output {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(_) => println!("NOT TESTED: there is no promtool, so the rules were only parsed"),
        }
    }
}

/// What the program says of a command.
fn help(command: &str) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_pillarbox")).args([command, "--help"]).output().unwrap();
    assert!(output.status.success(), "there is no command {command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asserts that a command line and its environment are what the program takes.
fn assert_taken(place: &str, arguments: &[&str], variables: &[&str]) {
    let help = help(arguments.first().unwrap_or_else(|| panic!("{place}: no command")));
    for argument in &arguments[1..] {
        let there = if argument.starts_with("--") {
            let flag = argument.split('=').next().unwrap();
            help.split([' ', '\n', ',']).any(|word| word == flag)
        } else {
            help.contains(&format!("- {argument}:"))
                || help.contains(&format!("- {argument}\n"))
                || possible_values(&help).contains(argument)
        };
        assert!(there, "{place}: {argument} in {help}");
    }
    for variable in variables {
        let known = [format!("[env: {variable}]"), format!("[env: {variable}=")];
        assert!(known.iter().any(|known| help.contains(known)), "{place}: {variable} in {help}");
    }
}

fn possible_values(help: &str) -> Vec<&str> {
    help.lines()
        .filter_map(|line| line.split_once("[possible values: "))
        .flat_map(|(_, values)| values.trim_end_matches(']').split(", "))
        .collect()
}

fn texts(list: &Yaml) -> Vec<&str> {
    list.as_vec().map(|list| list.iter().filter_map(Yaml::as_str).collect()).unwrap_or_default()
}

#[test]
fn the_manifests_for_kubernetes_start_what_there_is() {
    for (path, kind) in [
        ("ops/kubernetes/deployment.yaml", "Deployment"),
        ("ops/kubernetes/migrate.yaml", "Job"),
        ("ops/kubernetes/console.yaml", "Deployment"),
        ("ops/kubernetes/trail.yaml", "Deployment"),
        ("ops/kubernetes/migrate-trail.yaml", "Job"),
    ] {
        let manifest = yaml(path);
        assert_eq!(manifest["kind"].as_str(), Some(kind), "{path}");
        let pod = &manifest["spec"]["template"]["spec"];
        for container in pod["containers"].as_vec().unwrap() {
            let variables: Vec<&str> = container["env"]
                .as_vec()
                .unwrap()
                .iter()
                .map(|variable| variable["name"].as_str().unwrap())
                .collect();
            assert_taken(path, &texts(&container["args"]), &variables);
            let security = &container["securityContext"];
            assert_eq!(security["readOnlyRootFilesystem"].as_bool(), Some(true), "{path}");
            assert_eq!(security["allowPrivilegeEscalation"].as_bool(), Some(false), "{path}");
        }
        assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true), "{path}");
    }
    let [relay, trail, console] = ["deployment", "trail", "console"]
        .map(|name| yaml(&format!("ops/kubernetes/{name}.yaml"))["spec"].clone());
    assert_eq!(relay["replicas"].as_i64(), Some(2));
    let [of_relay, of_trail, of_console] =
        [&relay, &trail, &console].map(|spec| &spec["template"]["metadata"]["labels"]);
    for spec in [&relay, &trail] {
        let container = &spec["template"]["spec"]["containers"][0];
        assert_eq!(container["livenessProbe"]["httpGet"]["path"].as_str(), Some("/healthz"));
        assert_eq!(container["readinessProbe"]["httpGet"]["path"].as_str(), Some("/readyz"));
        assert_eq!(container["ports"][0]["name"].as_str(), Some("http"));
    }
    // The policy is for these pods, lets in who scrapes this port, and nobody else.
    let policy = yaml("ops/kubernetes/networkpolicy.yaml");
    assert_eq!(policy["kind"].as_str(), Some("NetworkPolicy"));
    assert_eq!(texts(&policy["spec"]["policyTypes"]), ["Ingress"]);
    let ingress = policy["spec"]["ingress"].as_vec().unwrap();
    assert_eq!(ingress.len(), 1);
    assert!(ingress[0]["from"][0]["namespaceSelector"]["matchLabels"].as_hash().is_some());
    assert_eq!(ingress[0]["ports"][0]["port"].as_str(), Some("http"));
    assert_eq!(ingress[0]["ports"].as_vec().unwrap().len(), 1);
    for (path, selector, selected) in [
        ("networkpolicy", "podSelector", [true, true, false]),
        ("servicemonitor", "selector", [true, true, false]),
        ("poddisruptionbudget", "selector", [true, false, false]),
    ] {
        let manifest = yaml(&format!("ops/kubernetes/{path}.yaml"));
        let found = [of_relay, of_trail, of_console]
            .map(|labels| selects(&manifest["spec"][selector], labels));
        assert_eq!(found, selected, "{path}");
    }
    for (path, labels) in [("service", of_relay), ("trail-service", of_trail)] {
        let manifest = yaml(&format!("ops/kubernetes/{path}.yaml"));
        assert_eq!(manifest["spec"]["selector"], *labels, "{path}");
        assert_eq!(manifest["metadata"]["labels"], *labels, "{path}");
    }
}

/// Whether a selector of Kubernetes selects what has these labels.
fn selects(selector: &Yaml, labels: &Yaml) -> bool {
    let plain = selector["matchLabels"].as_hash().unwrap();
    let listed = selector["matchExpressions"].as_vec().into_iter().flatten().all(|expression| {
        assert_eq!(expression["operator"].as_str(), Some("In"));
        let label = labels[expression["key"].as_str().unwrap()].as_str().unwrap();
        texts(&expression["values"]).contains(&label)
    });
    listed && plain.iter().all(|(key, value)| labels[key.as_str().unwrap()] == *value)
}

#[test]
fn the_compose_file_starts_what_there_is() {
    let compose = yaml("compose.yaml");
    let mut started = Vec::new();
    for (name, service) in compose["services"].as_hash().unwrap() {
        let name = name.as_str().unwrap();
        // What is written here stands over what is merged in.
        let part = |key: &str| match &service[key] {
            Yaml::BadValue => service["<<"][key].clone(),
            found => found.clone(),
        };
        if part("image").as_str() != Some("pillarbox") {
            continue;
        }
        let mut variables = Vec::new();
        for (key, value) in part("environment").as_hash().unwrap() {
            match key.as_str().unwrap() {
                "<<" => variables.extend(
                    value.as_hash().unwrap().keys().map(|key| key.as_str().unwrap().to_owned()),
                ),
                key => variables.push(key.to_owned()),
            }
        }
        let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
        let arguments = part("command");
        assert_taken(name, &texts(&arguments), &variables);
        started.push(texts(&arguments).join(" "));
    }
    started.sort();
    assert_eq!(started, ["console", "migrate all", "migrate trail", "relay", "relay", "trail"]);
}

#[test]
fn the_image_and_the_unit_start_what_there_is() {
    let dockerfile = read("Dockerfile");
    let line = |start: &str| {
        let found = dockerfile.lines().filter_map(|line| line.strip_prefix(start)).next_back();
        found.unwrap_or_else(|| panic!("no {start}in the Dockerfile"))
    };
    assert_eq!(line("ENTRYPOINT "), r#"["/pillarbox"]"#);
    let command: Vec<String> = serde_json::from_str(line("CMD ")).unwrap();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let variables: Vec<&str> =
        line("ENV ").split(' ').map(|pair| pair.split('=').next().unwrap()).collect();
    assert_taken("Dockerfile", &command, &variables);
    assert_ne!(line("USER ").split(':').next(), Some("0"));

    for name in ["relay", "console", "trail"] {
        let unit = &format!("ops/systemd/pillarbox-{name}.service");
        let text = read(unit);
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key));
            found.unwrap_or_else(|| panic!("no {key} in {unit}"))
        };
        let command: Vec<&str> = value("ExecStart=/usr/local/bin/pillarbox ").split(' ').collect();
        let variable = value("Environment=").split('=').next().unwrap();
        assert_taken(unit, &command, &["DATABASE_URL", "NATS_URL", variable]);
    }
}

#[test]
fn the_table_of_faults_is_the_same_in_the_code_and_in_the_docs() {
    let (code, docs) = (read("relay/src/sink/blame.rs"), read("docs/operations.md"));
    let rows: Vec<&str> = code
        .lines()
        .filter_map(|line| line.strip_prefix("//! "))
        .filter(|l| l.starts_with('|'))
        .collect();
    assert!(rows.len() > 5, "the table in blame.rs");
    assert!(docs.contains(&rows.join("\n")), "docs/operations.md has another table of faults");
}
