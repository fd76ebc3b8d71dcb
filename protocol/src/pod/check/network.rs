//! Names and addresses: `subdomain`, `hostAliases`, `dnsConfig`.

use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::{SUBDOMAIN, is_label, is_subdomain, label_rule};
use crate::limits;
use crate::manifest::Cause;
use crate::wire::spec::{DnsPolicy, PodSpec};

/// Most name servers that a resolver asks, as in Kubernetes.
const NAME_SERVERS: usize = 3;
/// Most search domains and bytes of them, as in Kubernetes.
const SEARCHES: usize = 32;
const SEARCH_BYTES: usize = 2048;

pub(super) fn check(pod: &PodSpec, out: &mut Vec<Cause>) {
    if !pod.subdomain.is_empty() && !is_label(&pod.subdomain) {
        let rule = label_rule(&pod.subdomain);
        out.push(Cause::invalid("spec.subdomain", &pod.subdomain, rule));
    }
    aliases(pod, out);
    dns(pod, out);
}

fn aliases(pod: &PodSpec, out: &mut Vec<Cause>) {
    if pod.host_aliases.len() > limits::ITEMS {
        out.push(Cause::too_long("spec.hostAliases", limits::ITEMS, "aliases"));
    }
    for (at, alias) in pod.host_aliases.iter().enumerate() {
        let path = format!("spec.hostAliases[{at}]");
        address(&format!("{path}.ip"), &alias.ip, out);
        for (n, name) in alias.hostnames.iter().enumerate() {
            if !is_subdomain(name) {
                let field = format!("{path}.hostnames[{n}]");
                out.push(Cause::invalid(field, name, SUBDOMAIN));
            }
        }
    }
}

fn dns(pod: &PodSpec, out: &mut Vec<Cause>) {
    let at = "spec.dnsConfig";
    let dns = &pod.dns;
    if pod.dns_policy == DnsPolicy::None && dns.nameservers.is_empty() {
        let what = "must provide at least one DNS nameserver when `dnsPolicy` is `None`";
        out.push(Cause::required(format!("{at}.nameservers"), what));
    }
    if dns.nameservers.len() > NAME_SERVERS {
        let why = "must not have more than 3 nameservers";
        let value = dns.nameservers.join(" ");
        out.push(Cause::invalid(format!("{at}.nameservers"), value, why));
    }
    for (n, server) in dns.nameservers.iter().enumerate() {
        address(&format!("{at}.nameservers[{n}]"), server, out);
    }
    if dns.searches.len() > SEARCHES || dns.searches.join(" ").len() > SEARCH_BYTES {
        let why = "must not have more than 32 search paths, of 2048 bytes together";
        let value = dns.searches.len();
        out.push(Cause::invalid(format!("{at}.searches"), value, why));
    }
    for (n, search) in dns.searches.iter().enumerate() {
        let name = search.strip_suffix('.').unwrap_or(search);
        // Names with an underscore are in use, and `.` alone asks for no search.
        if !name.is_empty() && !is_subdomain(&name.replace('_', "-").replace("-.", "x.")) {
            let field = format!("{at}.searches[{n}]");
            out.push(Cause::invalid(field, search, SUBDOMAIN));
        }
    }
    for (n, (name, value)) in dns.options.iter().enumerate() {
        let path = format!("{at}.options[{n}]");
        if name.is_empty() {
            out.push(Cause::required(format!("{path}.name"), "must not be empty"));
        }
        if [name, value]
            .into_iter()
            .any(|it| it.contains(char::is_whitespace))
        {
            out.push(Cause::invalid(path, name, "must not hold whitespace"));
        }
    }
}

fn address(field: &str, text: &str, out: &mut Vec<Cause>) {
    if text.parse::<IpAddr>().is_err() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        out.push(Cause::invalid(field, text, why));
    }
}
