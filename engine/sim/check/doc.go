// Package check is an explicit-state model checker for the coherence protocol: breadth first, it goes through
// every state that a small cluster of coherence.Agents can get into, and holds each against the invariants.
// The agents are the production objects; what is modelled is the world around them.
//
// # The model
//
// A state is the agents (coherence.AppendState), one FIFO of messages for each ordered pair of nodes, and the
// memory as a driver keeps it: the guest's mappings and the frames, as actions change them, and the receive
// slots. A transition is one of
//
//   - a message that is first in its FIFO arrives, so messages of different pairs overtake each other in every
//     way. The bytes of a page are captured when OpSendPage is performed and come with the message;
//   - a vCPU begins to read or write a page, out of a budget for each node, and faults if it may not;
//   - one that was woken goes on, or faults again because the page is gone already. A node can have a reader and
//     a writer for each page at a time, so there are followers. A lease faults like a vCPU;
//   - a node parks a page, any that it can, out of a budget; or its agent chooses, if it may cache only so many;
//   - a node's clock goes on, or its deadline is met.
//
// Of a page's bytes it matters only whether they are the last written (in the order in which writes happen, of
// which there is one, as only one node can write) and whether the last written are zeros. A reader that finds
// its page mapped needs no transition: an invariant says that it would see the last write.
//
// The actions of an input are one transition. That loses nothing: what another node can see of them are
// messages, and those have their own transitions. Vcpus do run between two actions; so for each message that
// promises something of this node's mapping it is checked, at the moment of its sending, that the mapping
// already keeps the promise. A write between OpInstall and the end of its batch is as good as one after it.
//
// A one-sided write can land before its message. In a slot nobody sees that. The home frame must not be mapped
// or sent while such a write is under way, and must not change while it is sent in place; these are invariants.
//
// Every message is delivered a second time right after the first, and has to be refused; and every fault is
// repeated where the mapping is good, and has to wake the vCPU and change nothing.
//
// # Time
//
// Without tenure the agent's times have no effect. With it, each node has a clock of its own which at any moment
// may go on by the least tenure, independently of the others', so every page is given up at every moment from
// its first to its last (in steps of the least tenure), deadlines are met late, and nodes disagree about whose
// turn it is. States hold ages, not times, so they are finitely many. The clocks stay far below the window in which
// a page counts as fought over: once a page has a tenure it keeps it, and none loses it by quiet.
//
// That a tenure is over for good once its bound has passed is taken for granted where ages are cut off. TestFolding
// is there for such assumptions: it holds agents whose states were written down and restored against agents that
// went the same way undisturbed.
//
// # Reductions
//
// Nodes that are not told apart by a home or by their budgets, and pages of the same home, are
// interchangeable: of all states that are the same up to such a renaming only the one whose encoding is the least is
// kept. Tenure ends that for nodes (the right of way goes by their numbers), prefetch and a bounded cache for pages
// (sequences, and the hand of the clock, go by theirs). Slots and transactions are renamed in any case. Where agents remember faults (companions, prefetch)
// clusters are Prompt, or small. States are remembered by a hash of 128 bits:
// with 10 million states the odds that one was taken for another are below 1 in 10^24.
//
// # Invariants
//
// In every state: one writer or many readers, by the guests' mappings; whoever may read has the last written
// bytes; an agent knows its guest's mapping; no action contradicts the mapping, and no message is refused; the
// directory gives each node what it has, if the page is in no transaction; the home frame is good if the directory says so;
// a node has one request under way for a page, a frame for each page of others that it holds and for no other, and no
// more of them than it may have. Where a page is at rest (no message, request or deferral about
// it), directory and mappings are the same and nobody waits.
//
// And in every state, what agents would say of their pages if a node were lost now, or two, or the queue pair between two:
// a page that they call safe has its last written bytes at a node that is left, whether what is under way arrives
// or not; one that they call lost has them neither there nor under way; and nothing is uncertain without a transaction.
//
// Deadlock and starvation are one check. For each state one transition is designated, by a fixed fair rule that
// gives no new work: a woken vCPU goes on, else the first message arrives, else time goes on, else a vCPU faults
// again. A state that has none although somebody waits or something is under way is a deadlock. Afterwards the
// designated transitions are followed from every state: all have to lead to one where every vCPU is served, none
// into a cycle. So from every state on, a fair schedule that serves everybody exists, which is given; it is not
// claimed that every fair schedule does (two nodes can take a page from each other before either has used it:
// that is what tenure is against, and engine/sim measures).
package check
