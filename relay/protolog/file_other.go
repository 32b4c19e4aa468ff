//go:build !unix

package protolog

func unsyncable(error) bool { return false }
