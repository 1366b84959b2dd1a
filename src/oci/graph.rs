//! The walk over the manifests of an image: an index, the manifests it lists, the manifests that nested indexes list.
//!
//! The walk holds no content. Its user reads each manifest that [`Walk::next_manifest`] returns, and hands the entries of an index
//! back to [`Walk::descend`]. The limits end every walk, whatever the indexes say.

use std::collections::HashSet;

use super::{Descriptor, Digest};

/// Deepest nesting of indexes. An index of indexes is rare; eight levels are a mistake or an attack.
pub const MAX_DEPTH: usize = 8;
/// Most manifests of one image. Every entry of every index counts.
pub const MAX_MANIFESTS: usize = 10_000;

/// Most blobs that all images of a layout may name together, if `distinct` of them are different. An image has its own manifest and config,
/// and shares at most some hundred layers with others.
#[must_use]
pub const fn max_named(distinct: usize) -> usize {
    distinct.saturating_mul(100).saturating_add(100_000)
}

/// A limit of the walk. Displays as a quantity: "8 levels of indexes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// [`MAX_DEPTH`].
    #[error("{MAX_DEPTH} levels of indexes")]
    Depth,
    /// [`MAX_MANIFESTS`].
    #[error("{MAX_MANIFESTS} manifests")]
    Manifests,
}

/// A manifest as its parent describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Number of indexes above it.
    pub depth: usize,
    /// Whether the walk visited its digest before.
    pub is_repeated: bool,
}

/// A manifest beyond a limit. The walk can continue past it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// The limit.
    pub limit: Limit,
    /// The manifest.
    pub node: Node,
}

/// A depth-first walk over manifests, in the order of their indexes.
#[derive(Debug, Default)]
pub struct Walk {
    /// Descriptors to visit with their depths, the next one last.
    pending: Vec<(Descriptor, usize)>,
    visited: HashSet<Digest>,
    manifests: usize,
}

impl Walk {
    /// A walk that starts at `root`.
    #[must_use]
    pub fn from_root(root: Descriptor) -> Self {
        let mut walk = Self::default();
        walk.add_root(root);
        walk
    }

    /// Continues with another root. The digests visited so far and their number stay.
    pub fn add_root(&mut self, root: Descriptor) {
        self.pending.push((root, 0));
    }

    /// The next manifest. A repeated one is returned too, because its descriptor may name another platform.
    pub fn next_manifest(&mut self) -> Option<Result<Node, Exceeded>> {
        let (descriptor, depth) = self.pending.pop()?;
        self.manifests += 1;
        let is_repeated = !self.visit(descriptor.digest);
        let node = Node { descriptor, depth, is_repeated };
        Some(if self.manifests > MAX_MANIFESTS {
            Err(Exceeded { limit: Limit::Manifests, node })
        } else if depth > MAX_DEPTH {
            Err(Exceeded { limit: Limit::Depth, node })
        } else {
            Ok(node)
        })
    }

    /// Visits `entries`, which the index at `depth` lists, before anything that is pending.
    pub fn descend(&mut self, depth: usize, entries: Vec<Descriptor>) {
        self.pending.extend(entries.into_iter().rev().map(|entry| (entry, depth + 1)));
    }

    /// Marks a digest as visited, such as that of a layer. Returns whether it was not visited before.
    pub fn visit(&mut self, digest: Digest) -> bool {
        self.visited.insert(digest)
    }

    /// Whether the walk visited this digest.
    #[must_use]
    pub fn is_visited(&self, digest: &Digest) -> bool {
        self.visited.contains(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    type Indexes = HashMap<Digest, Vec<Descriptor>>;

    fn node(name: &str) -> Descriptor {
        Descriptor::new("", Digest::sha256_of(name.as_bytes()), 1)
    }

    /// The indexes by digest. `("a", "b c")` is an index `a` that lists `b` and `c`.
    fn indexes(edges: &[(&str, &str)]) -> Indexes {
        edges.iter().map(|(index, entries)| (node(index).digest, entries.split_whitespace().map(node).collect())).collect()
    }

    /// Walks from `root` and descends into every index the first time. Returns each manifest's step.
    fn steps(root: &str, indexes: &Indexes) -> Vec<Result<Node, Exceeded>> {
        let mut walk = Walk::from_root(node(root));
        let mut steps = Vec::new();
        while let Some(step) = walk.next_manifest() {
            if let Ok(Node { descriptor, depth, is_repeated: false }) = &step
                && let Some(entries) = indexes.get(&descriptor.digest)
            {
                walk.descend(*depth, entries.clone());
            }
            steps.push(step);
        }
        steps
    }

    /// The manifests that the walk returns within the limits: name, depth, and `=` for a repeated one.
    fn visits(root: &str, edges: &[(&str, &str)]) -> String {
        let names: HashMap<Digest, &str> = edges
            .iter()
            .flat_map(|(index, entries)| entries.split_whitespace().chain([*index]))
            .map(|name| (node(name).digest, name))
            .collect();
        let show =
            |node: Node| format!("{}{}{}", names[&node.descriptor.digest], node.depth, if node.is_repeated { "=" } else { "" });
        steps(root, &indexes(edges)).into_iter().map(|step| show(step.unwrap())).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn manifests_come_depth_first_in_the_order_of_their_indexes() {
        assert_eq!(visits("r", &[("r", "a i b"), ("i", "c d")]), "r0 a1 i1 c2 d2 b1");
    }

    #[test]
    fn missing_child_is_visited_and_has_no_children() {
        assert_eq!(visits("r", &[("r", "missing b")]), "r0 missing1 b1");
    }

    #[test]
    fn repeats_are_marked_and_a_cycle_ends() {
        assert_eq!(visits("r", &[("r", "a a i"), ("i", "a r i")]), "r0 a1 a1= i1 a2= r2= i2=");
    }

    #[test]
    fn digest_marked_as_visited_is_repeated() {
        let mut walk = Walk::from_root(node("layer"));
        assert!(walk.visit(node("layer").digest));
        assert!(!walk.visit(node("layer").digest) && walk.is_visited(&node("layer").digest));
        assert!(walk.next_manifest().unwrap().unwrap().is_repeated);
        assert_eq!(walk.next_manifest(), None);
    }

    #[test]
    fn indexes_nest_to_the_limit_and_no_deeper() {
        let names: Vec<String> = (0..=MAX_DEPTH + 1).map(|depth| format!("i{depth}")).collect();
        let edges: Vec<(&str, &str)> = names.windows(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
        let mut steps = steps("i0", &indexes(&edges));
        let last = steps.pop().unwrap().unwrap_err();
        assert_eq!((last.limit, last.node.descriptor), (Limit::Depth, node(names.last().unwrap())));
        assert!(steps.len() == MAX_DEPTH + 1 && steps.iter().all(Result::is_ok));
        assert_eq!(last.limit.to_string(), "8 levels of indexes");
    }

    #[test]
    fn repeats_and_roots_count_toward_the_limit() {
        let mut walk = Walk::from_root(node("r"));
        walk.next_manifest();
        walk.descend(0, vec![node("a"); MAX_MANIFESTS - 1]);
        assert!((1..MAX_MANIFESTS).all(|_| walk.next_manifest().unwrap().is_ok()));
        assert_eq!(walk.next_manifest(), None);
        walk.add_root(node("s"));
        let last = walk.next_manifest().unwrap().unwrap_err();
        assert_eq!((last.limit.to_string().as_str(), last.node.descriptor), ("10000 manifests", node("s")));
    }

    #[test]
    fn exponential_number_of_paths_ends_at_the_limit() {
        // Every index lists the next one 100 times: 100^8 paths. A user that descends into repeats is stopped too.
        let mut walk = Walk::from_root(node("0"));
        let mut steps = 0;
        loop {
            steps += 1;
            match walk.next_manifest().unwrap() {
                Ok(Node { depth, .. }) => walk.descend(depth, vec![node(&(depth + 1).to_string()); 100]),
                Err(Exceeded { limit: Limit::Depth, .. }) => {}
                Err(Exceeded { limit: Limit::Manifests, .. }) => break,
            }
        }
        assert_eq!(steps, MAX_MANIFESTS + 1);
    }

    proptest! {
        #[test]
        fn reachable_manifests_of_any_graph_are_visited_once(lists in proptest::collection::vec(proptest::collection::vec(0..24_usize, 0..5), 24)) {
            let name = |at: usize| at.to_string();
            let indexes: Indexes =
                lists.iter().enumerate().map(|(at, list)| (node(&name(at)).digest, list.iter().map(|to| node(&name(*to))).collect())).collect();
            let steps = steps("0", &indexes);
            // Each entry of each index that was read is one step, and the root is one.
            let read = steps.iter().flatten().filter(|node| !node.is_repeated);
            prop_assert_eq!(steps.len(), 1 + read.clone().map(|node| indexes[&node.descriptor.digest].len()).sum::<usize>());
            let visited: HashSet<Digest> = read.clone().map(|node| node.descriptor.digest).collect();
            prop_assert_eq!(visited.len(), read.count());
            // Only manifests below the depth limit may be missed.
            let too_deep = steps.iter().any(Result::is_err);
            let mut reachable = HashSet::from([0]);
            let mut next = vec![0];
            while let Some(at) = next.pop() {
                next.extend(lists[at].iter().copied().filter(|to| reachable.insert(*to)));
            }
            let reachable: HashSet<Digest> = reachable.into_iter().map(|at| node(&name(at)).digest).collect();
            prop_assert!(visited.is_subset(&reachable) && (too_deep || visited == reachable));
        }
    }
}
