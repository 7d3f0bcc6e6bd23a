/*
Package coherence is Ironspan's coherence protocol: it decides who may read and write which page of guest
memory, and says what has to be done for it. It is one pure object, the Agent, which holds a node's part of
one shard as requester, holder and home. Faults, messages and the time go in; actions come out. It has no
goroutine, clock, randomness or I/O, and does not iterate over maps, so the same inputs give the same actions
in production, in the simulator (engine/sim) and in a model checker.

# Driving an Agent

One goroutine (fastpath's shard thread) owns the agent. For each input it calls Fault, Step or Tick, performs
Actions in order and to the last, and calls Clear. Tick is due when Next says so; late is allowed. Every
input may be given at any time; one that is stale or wrong is recognised. The driver owes the agent:

  - links: messages between two nodes of a shard arrive once and in the order in which they were sent, and a
    page sent with OpSendPage has landed when its message arrives (one RC queue pair does both);
  - m.From is who really sent the message;
  - a right that was revoked is gone: when OpProtect or OpUnmap has been performed, no vCPU can use the old
    mapping any more (UFFDIO_WRITEPROTECT and MADV_DONTNEED return after KVM's notifiers have flushed).
    Revoke first, send the bytes afterwards;
  - whoever waits for a page is woken by OpInstall, OpUnprotect and OpWake and then tries again.

# What is kept where

A page has a home, by its address, for ever. The home has a frame for it and a directory entry: shared, by a
set of nodes, or owned by one. In the beginning every page is owned by its home. The home frame holds the
page's bytes if the page is shared (whether or not the home itself is a sharer) or owned by the home; if
another node owns it the frame is stale, and nobody reads it.

A node has one of three rights to a page, which is how its guest has it mapped: I (not at all), S (read), M
(read and write). It is M at one node, or S at any number; never both.

A node has at most one request outstanding for a page, and takes a receive slot for each, also for a page of
its own, where the slot is only a token. So a home never has more requests than nodes times slots; they are
stored at home by (requester, slot) and linked into one FIFO for each page.

# Transactions

A home works at one request of a page at a time; it is busy until the transaction is over, and later ones
wait in their order. R requester, H home, X owner, Y each sharer but R:

	request         directory      messages                                              afterwards
	GetS            shared         R-GetS->H  H=Grant(S)=>R                               sharers + R
	GetS            owned by H     R-GetS->H  (protect) H=Grant(S)=>R                     shared by H, R
	GetS            owned by X     R-GetS->H-FwdGetS->X  (protect) X=Grant(S)=>R          shared by X, R
	                               X=WriteBack=>H  R-Done->H
	GetM            owned by H     R-GetM->H  (unmap) H=Grant(M)=>R                       owned by R
	GetM            owned by X     R-GetM->H-FwdGetM->X  (unmap) X=Grant(M)=>R-Done->H    owned by R
	GetM            shared         R-GetM->H  H-Inv->Y  (unmap) Y-InvAck->R               owned by R
	                               H=Grant(M, set of Y)=>R-Done->H
	Upgrade         shared by R    as GetM, but the grant comes without the page          owned by R
	Upgrade         otherwise      as GetM: R has lost its copy in the meantime           owned by R
	GetS            shared, or H   H's grant covers other pages of the group, too         their sharers + R
	any             X, parked      R-Get->H-Fwd->X-WriteBack(FlagHome)->H, then from the  as there
	                               beginning: shared by nobody

"=>" carries the page, "->" does not. A page of zeros is carried as FlagZero. Nodes do not send themselves
messages: if H is R, X or one of Y, its part is done in place, and
  - a request of the home for a page whose frame is good carries no bytes;
  - what an owner grants the home lands in the home frame, and needs no WriteBack;
  - the home's own copy is dropped before the grant is sent, and needs no InvAck, unless it is in its tenure.

A Done is sent, and waited for, exactly if the grant does not come from the home or makes R wait for
acknowledgements. Otherwise whatever H sends R about the page next arrives after the grant, on the same queue
pair, and R has the page by then; so the directory is changed at once and the page is free for the next
request. For a clean read, the most common transaction, that is two messages instead of three.

# Requester

	state          input                      action                                    next
	I, S           fault                      take a slot; GetS, GetM or Upgrade        asked
	I, S           fault, no slot free        into the local FIFO; OpWake if full       queued
	queued         slot free                  GetS, GetM or Upgrade                     asked
	asked, queued  fault                      none: a follower                          same
	S, M           fault that it satisfies    OpWake: the fault is stale                same
	asked          Grant, all acks there      OpInstall or OpUnprotect, Done            S or M
	asked          Grant, acks missing        none                                      granted
	asked          InvAck                     note who                                  same
	granted        last InvAck                OpInstall or OpUnprotect, Done            M
	asked (from S) Inv                        OpUnmap, InvAck; the Upgrade will bring   asked
	                                          the page
	S              too many pages, or Evict   OpUnmap, OpDiscard                        S parked
	M              too many pages, or Evict   take a slot; OpUnmap, OpPark              parking
	parking        fault                      it is remembered                          same
	parking        Parked                     OpDiscard                                 M parked, or queued
	parked         fault                      take a slot; OpFetch, or GetS or GetM     fetching, or asked
	fetching       Fetched                    OpInstall                                 S or M
	fetching       Fetched, the right gone    OpWake                                    I
	I, asked       covered by a Grant for     none                                      S parked
	               another page
	asked (covered since its Inv)  Grant      take a slot; OpFetch                      fetching, in M
	               without the page

A follower that writes behind a GetS is woken by the grant and faults again: one that found its mapping good
enough would be woken for nothing, so nothing is remembered. The page's bytes stay in the slot while the
acknowledgements are missing, and are out of it once OpInstall is done, so only then the slot is free.

# Holder

	state          input                      action                                    next
	M              FwdGetS                    OpProtect, page and Grant(S) to R,        S
	                                          page and WriteBack to H
	M              FwdGetM                    OpUnmap, page and Grant(M) to R,          I
	                                          OpDiscard
	S              Inv                        OpUnmap, InvAck to R, OpDiscard           I
	M parked       FwdGetS, FwdGetM           WriteBack(FlagHome) to H                  I
	S parked       Inv                        InvAck to R                               I
	M, S           any of them, in tenure     none                                      deferred
	deferred       end of the tenure (Tick)   as above                                  S or I
	deferred       fault that M, S satisfies  OpWake: the page is still there           same

# Home

	state          input                      action                                    next
	idle           request                    as in the table of transactions           idle, held or busy
	held           end of its own tenure      give up the page, grant                   idle
	held, busy     request                    append                                    same
	shared, or     a Grant(S) of another      OpProtect if owned by H                   shared, + R
	owned by H     page of the group to R
	busy           Done                       change the directory; begin the next      idle, or write-back
	busy           WriteBack                  OpZeroFrame if FlagZero                   busy
	busy           WriteBack(FlagHome)        begin the same request again              idle, held or busy
	write-back     WriteBack                  the same; begin the next                  idle

Write-back is what remains of a GetS from an owner when R is done and X's WriteBack is still on its way: the
home frame is not good yet. Done and WriteBack come from different nodes, so either can be first.

# Races, and why they are none

An InvAck can overtake the grant, which comes from another node: R notes it, and the grant says whose it has
to be. A set, not a count: an acknowledgement of somebody who was no sharer cannot stand in for one that is
missing.

An Upgrade can lose to another request that reached the home first. R gets an Inv while it waits, gives up
its copy like any sharer (and at once: it would only delay the request that is before its own), and when its
turn comes the home sees that R is no sharer any more and sends the page along. R itself decides by its own
state what it can accept: a bare grant if it has S, a page if it has I. It cannot be otherwise, for the home's
view of R changes only with grants that reach R before the one of the Upgrade. One of these may have been for another
page, and have covered this one in the meantime: then R has S again, though not the copy that it wanted to upgrade, and
what a bare grant gives it is a page in M that is parked.

A Fwd or Inv cannot meet a node that has not yet installed what the home believes it has. Either the home has
R's Done, or R's grant came from the home on the link on which the Fwd comes now. So a holder is always in the
state that a Fwd or Inv asks for, and has at most one for a page: what does not fit is refused.

A WriteBack can come after the next request of the same page: that one waits, because the home could have to
answer it from its frame. It cannot come after a Fwd to the same owner, since the home sends none before it
has the WriteBack. X's own next Upgrade of the page comes behind its WriteBack, on the same link.

A parked page is one that a node has the right to and no bytes of. What the home sends it finds it as what the directory
says it is. It need not send bytes on: those of a page in M are in the home frame before the message that says so, on the
same link. A page is fetched only while the right is here, so nobody else writes the home frame; if the right goes in the
meantime, what arrives is dropped, even if a grant covers the page again before it arrives: the operation is void. It has
to be known that the home frame is good: for a page in M this node wrote it; for one in S the home itself has granted it.
After a grant by an owner, or having been that owner, the write-back may be still to come, so the node asks. A sharer may
therefore ask for what the directory says it has.

The home frame is not written while it can be read. X writes into it only as owner: then the guest at home
has it unmapped, and the directory says owned, or that the write-back is still to come. And it stays as it is until its bytes are out:
for the home to write it again, it has to have the acknowledgement of every reader, or the page back from its
new owner, and either has had the message that came behind the bytes. So a driver may send it in place.

A slot is not written while it is in use: it is named in one request at a time, one grant answers it, and it
is free only when the page is installed.

The tenure of two nodes cannot wait for each other: it ends by time alone, whatever anybody is waiting for.

# Tenure

An instruction needs several pages at the same time: with nested paging, where page walks count as writes, ten
and more in M, which are fetched one after the other. If two nodes that need the same pages give them up as
soon as they are asked, neither ever has all of them. So a page that is fought over is kept for a while:

  - The home notes when a page moves, that is, when a transaction takes a right away from somebody, be it for
    a write or for a read. A move soon after the one before (Tenure.Window) raises the page's level, time
    without moves lowers it. The level gives the bound, from Base to Max, that grants and Fwds carry.
  - The tenure begins when the page is installed. A holder keeps the page for Base in any case: a vCPU that
    waited for it will have used it by then.
  - A node that is collecting keeps what it has: as long as it waits for another page, the pages it won in the
    same spell stay, up to the bound; and when it has them all, for as long again as the collecting took. So
    nodes that need the same set of pages take turns, whatever the size of the set, and spend half of the time
    working; while a page that is needed alone (a lock, a flag) moves on after Base.
  - Of two nodes that collect at the same time, one gives way. Which one goes round by the clock, in turns of half
    of Max, among three nodes or fewer; with more, each insists (see precedes).
  - What was taken from a node while it fought for it, it asks for all at once when it misses one of it (see
    companions), again with three nodes or fewer.
  - A node whose vCPUs are all halted (Idle) keeps nothing.

No request starves: the queue at home is a FIFO of at most one request for each node, and each of them is
answered after at most Max and three messages. Max has to be well above the time to fetch the largest set,
or two nodes that have half of it each wait for each other until both lose their half.

Tenure is a matter of speed alone. If the pool for deferred messages is full, a page is given up early. A
collecting node is known to the agent of one shard only; sets that spread over several shards collect less
well.

# What is checked

Messages come from other members of the VM, but one of them may be broken, or worse. A message is accepted
only if everything about it is what it can be: epoch; kind; sender (the home for Fwd and Inv; the requester
itself for requests and Done; the owner for WriteBack, and for a grant to the home; the home for a grant with
acknowledgements or without a page); a page of the shard, and homed here if it is for the home; slot in
range; a transaction that is outstanding, for that page; acknowledgements from whom they are awaited, once;
mode, flags and the other fields as the kind has them; and the page in the state in which this can be asked.
Anything else is counted by reason and changes nothing. So a bad peer cannot make an agent panic or take an
action that contradicts its mapping, and cannot interfere with transactions that do not go through it. It can
still send wrong bytes for a page that it owns, or never answer, and memory that its RDMA keys open to it is
open to it: those are limits of the transport.

Transactions are numbered by their requester. A home refuses a request of a slot whose number is not above the
last one, so that a repetition is recognised also after the original is over.

# Loss of a node

Nothing goes on without a node; the VM ends. Losses says afterwards what became of the pages, in this agent's part of the
answer, and docs/protocol.md how that follows from the states. An agent has no patience of its own: its driver can see by
Oldest that a request goes without an answer.

# Groups

A grant of S by the home covers other pages of the group of 64 that its page is in: R gets the right to read them, as if
it had parked them, and fetches those that it comes to need. So what is read all over costs a message or a few for each
group, and for the rest the home's processor has no part in it. The home covers what is shared anyway and good in its
frame; and, for a reader that has CoverFrom pages of the group, what it owns itself and has not had to give up like this
before since somebody asked for it. It leaves alone what is fought over, what migrates, and what anything is under way
for. It is never wrong to cover a page, and may be in vain: then there is one more sharer to invalidate, and a home that
writes the page again waits for an acknowledgement.

# Cached memory

A node may hold a bounded number of pages that are homed elsewhere (Config.Cache), so a VM can have more memory than
any of its servers. A page counts from the request for it until OpDiscard, hence a grant always finds room and frames
never exceed the bound. At the high-water mark, a sixteenth below the bound, the agent begins to park pages, as
many below that, at most eight at a time; the faults meanwhile have the room between the mark and the bound. A fault
that finds no room waits in the FIFO for slots. That cannot be for ever: what waits for room holds no slot, what holds
a slot is answered without waiting for room, and parking waits for nobody but the device.

Which pages go is decided by a clock over them in their order, in two bitmaps. The hand spares, once, a page that was
installed or upgraded since it last passed; having spared all, it rests for the least tenure. Nobody tells the agent of accesses that do not fault. Pages with something
under way are passed over. What is asked for ahead of faults (companions, streams) is asked for below the high-water
mark only, and streams are cut down to a quarter of the bound, so that they do not drive out themselves.
*/
package coherence
