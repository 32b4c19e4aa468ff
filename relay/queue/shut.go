package queue

// Shut makes the queue take no mail from now on, or take it again when why is
// empty. Why is for operators. The relay's own reports go on being queued.
func (q *Queue) Shut(why string) {
	if why == "" {
		q.shut.Store(nil)
		return
	}
	q.shut.Store(&why)
}
